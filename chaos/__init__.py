"""The chaos test: breaks the running system on purpose and checks what it promises, from the outside.

`python -m chaos` runs it, `python -m chaos.checker FOLDER` checks a saved run again. docs/reliability.md explains both.
"""
