"""The callables that workflow files name, as ``contract_review.agents:extract_clauses``."""

from contract_review.counsel import plan_report
from contract_review.dossier import build_dossier
from contract_review.extract import extract_clauses, find_facts
from contract_review.grounding import ground_findings
from contract_review.policy import check_coverage, check_policy
from contract_review.reading import read_closely
from contract_review.reviewer import review_report
from contract_review.risk import classify_risk
from contract_review.writer import write_report

__all__ = [
    "build_dossier",
    "check_coverage",
    "check_policy",
    "classify_risk",
    "extract_clauses",
    "find_facts",
    "ground_findings",
    "plan_report",
    "read_closely",
    "review_report",
    "write_report",
]
