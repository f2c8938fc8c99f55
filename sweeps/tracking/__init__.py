"""MLflow as a reader of what a sweep writes: one run for the sweep, one for each trial, found again by tag.

server → cursor → runs → model → upload; `python -m sweeps.tracking` sends or rebuilds from a shell.
"""
