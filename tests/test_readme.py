"""What the README shows is what works."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_example_runs_and_reaches_every_weight():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(example, names)
    assert names["loss"].isfinite()
    assert all(p.grad is not None for p in names["model"].parameters())
