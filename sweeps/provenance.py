"""Where a sweep's numbers come from: the search space in absolute weights, the code's version, the environment."""

import json
import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path

from regularizers import REGULARIZERS
from sweeps.settings import Sweep

ROOT = Path(__file__).resolve().parents[1]


def provenance(sweep: Sweep, units: dict[str, float]) -> dict[str, str]:
    """Files for the sweep's run in MLflow, by name."""
    python = f"python {platform.python_version()}, {platform.platform()}"
    return {
        "search_space.json": json.dumps(search_space(sweep, units), indent=1),
        "environment.txt": f"{code_version()}\n{python}\n{packages()}\n",
    }


def search_space(sweep: Sweep, units: dict[str, float]) -> dict[str, list[float]]:
    """What the weight of each regularizer may be: lowest and highest of a search, or those the sweep names."""
    if sweep.weight is not None:
        return {name: [sweep.weight] for name in units}
    return {
        name: [strength * unit for strength in sweep.strengths or REGULARIZERS[name].strengths()]
        for name, unit in units.items()
    }


def code_version() -> str:
    """The commit of the code, and whether files differ from it; where there is no git, just that."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return "commit unknown"
    return f"commit {described.stdout.strip()}"


def packages() -> str:
    """Every installed package with its version, as pip writes them."""
    found = {f"{one.metadata['Name']}=={one.version}" for one in distributions()}
    return "\n".join(sorted(found, key=str.lower))
