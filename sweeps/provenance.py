"""Where a sweep's numbers come from: data, search space in absolute weights, the code's version, the environment."""

import contextlib
import getpass
import json
import platform
import subprocess
from hashlib import sha256
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import urlsplit

from regularizers import REGULARIZERS
from sweeps.proposals import named
from sweeps.settings import Sweep
from trainer.shards import evaluation_splits, read_shards
from trainer.shards.layout import SPLITS

ROOT = Path(__file__).resolve().parents[1]


def provenance(sweep: Sweep, units: dict[str, float]) -> dict[str, str]:
    """Files for the sweep's folder and its run in MLflow, by name."""
    python = f"python {platform.python_version()}, {platform.platform()}"
    return {
        "calibration.json": json.dumps(units, indent=1),
        "search_space.json": json.dumps(search_space(sweep, units), indent=1),
        "environment.txt": f"{code_version()}\n{python}\n{packages()}\n",
    }


def source() -> dict[str, str]:
    """Tags by which MLflow shows who ran what."""
    tags = {"mlflow.source.name": "sweeps/all_regularizers.py", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    commit = code_version().split()[1]
    return tags if commit == "unknown" else tags | {"mlflow.source.git.commit": commit}


def dataset(data: str | None) -> dict[str, str]:
    """The shards as an input of a run in MLflow; the digest is that of their checksums, or of names and counts."""
    val, test = evaluation_splits(data)
    splits = (read_shards(data, "train"), val, test)
    content = [(one.split, path.rpartition("/")[2], count, checksum) for one in splits
               for path, count, checksum in zip(one.paths, one.counts, one.checksums, strict=True)]  # fmt: skip
    folders = splits[0].paths[0].split("/")[:-1]
    return {
        "name": folders[-2] if folders[-1].lower() in SPLITS else folders[-1],  # train/0.tar
        "digest": sha256(json.dumps(content).encode()).hexdigest()[:16],
        "source_type": urlsplit(str(data)).scheme or "local",
        "source": json.dumps({"uri": data}),
        "profile": json.dumps({one.split: one.total for one in splits} | {"classes": len(val.classes)}),
    }


def search_space(sweep: Sweep, units: dict[str, float]) -> dict[str, list[float]]:
    """What weight and settings of each regularizer may be: lowest and highest of a search, or those the sweep names."""
    if sweep.trial.weight:
        return {name: [sweep.trial.weight] for name in units} | {name: [value] for name, value in sweep.fixed.items()}
    weights = {
        name: [strength * unit for strength in sweep.strengths or REGULARIZERS[name].strengths()]
        for name, unit in units.items()
    }
    settings = {key: one for name in units for key, one in named(name, REGULARIZERS[name].settings()).items()}
    return weights | {
        key: [sweep.fixed[key]] if key in sweep.fixed else [one.low, one.high] for key, one in settings.items()
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
