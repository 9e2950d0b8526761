"""The bench: every workload against the running system, with what bounds it measured in the same run.

`python -m bench` runs it; docs/performance.md explains it and has the results.
"""
