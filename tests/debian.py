"""Programs that tests need and pip does not bring."""

import os
import shutil
import subprocess

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def lacking(tools):
    """Install Debian's packages of the programs that are not here, where that can be done; those that still lack.

    Args:
        tools: package of each program.
    """
    missing = {package for tool, package in tools.items() if not shutil.which(tool, path=PATH)}
    if missing and shutil.which("apt-get") and os.geteuid() == 0:
        install = ["apt-get", "install", "-y", "--no-install-recommends", *sorted(missing)]
        for command in (["apt-get", "update"], install):
            subprocess.run(command, capture_output=True, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})
    return {package for tool, package in tools.items() if not shutil.which(tool, path=PATH)}
