"""A contract review by plain Python agents: sections, duties, risks, policy, a closer reading, a reviewed report.

Every agent is a deterministic function of its input (and of the policy file its configuration names). Offsets count
characters of the contract exactly as it came in, so ``contract[start:end] == quote`` holds for every quotation.
"""
