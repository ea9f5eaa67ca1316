"""``python -m bench``: ours and others on the same work, alternating, in one run.

A *column* is a system under test (``columns/``), a *workload* is what it is given (``workloads/``), a *pair* is one
turn of every column. Ratios are taken within a pair, so that what slows the machine slows both sides.
"""
