"""A user's machine and three others that the shipped configuration makes a cluster."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from hosts import HOME, Hosts, missing

ROOT = Path(__file__).parents[2]
SHIPPED = ("cluster", "regularizers", "trainer", "sweeps")


def filled(name, values):
    """A shipped configuration with the user's values: the lines at its top, completed."""
    text = (ROOT / "cluster" / name).read_text()
    for value, given in values.items():
        text, count = re.subn(rf"^( *)# ({value}: &{value}) .*", rf"\1\2 {given}", text, flags=re.MULTILINE)
        assert count == 1, value
    return text


@pytest.fixture(scope="module")
def hosts():
    if why := missing():
        pytest.skip(why)
    with Hosts("laptop", "head", "one", "two") as hosts:
        for name in hosts.names:
            home = hosts.disk(name, HOME)
            # The packages are those the tests run with; the bootstrap finds nothing left to install.
            (home / "heatmap-sweeps-env").symlink_to(sys.prefix)
            with (home / ".bashrc").open("a") as file:
                file.write("""export RAY_OVERRIDE_RESOURCES='{"CPU": 1}' RAY_AUTH_MODE=token\n""")
        laptop = hosts.disk("laptop", HOME)
        with (laptop / ".bashrc").open("a") as file:
            file.write("export PATH=~/heatmap-sweeps-env/bin:$PATH\n")
        shutil.copy(hosts.key, laptop / "key")
        for name in SHIPPED:
            shutil.copytree(ROOT / name, laptop / "project" / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, laptop / "project")
        values = {
            "head": hosts.address["head"],
            "workers": f"[{hosts.address['one']}, {hosts.address['two']}]",
            "user": "root",
            "key": "~/key",
            "setup": "bash ~/heatmap-sweeps/cluster/bootstrap.sh /shared/sweeps",
        }
        (laptop / "project/cluster/onprem.yaml").write_text(filled("onprem.yaml", values))
        yield hosts
