"""The report of a sweep: page → page.html; `python -m sweeps.report` writes it again."""
