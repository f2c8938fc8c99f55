"""Several computers on one: each has a network address, a disk, processes and an ssh server of its own.

They are namespaces of the kernel. Their network ends at a bridge inside the first one's namespace: this machine gets no
interface, and no packet can leave.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from debian import PATH, lacking

HOME = "/home/host"
PYTHON = sorted({sys.base_prefix, sys.prefix})
TOOLS = {"sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync", "ip": "iproute2", "nsenter": "util-linux"}


def missing():
    """Why there can be no such hosts here, None if there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root"
    if packages := lacking(TOOLS):
        return f"needs {', '.join(sorted(packages))}, which could not be installed"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "needs overlayfs"
    probe = subprocess.run(["unshare", "-n", "-m", "-p", "-f", "true"], capture_output=True, text=True)
    return f"cannot make namespaces: {probe.stderr.strip()}" if probe.returncode else None


class Hosts:
    """Hosts by name; the first is the one a user sits at.

    Args:
        names: of the hosts.
    """

    def __init__(self, *names):
        self.names = names
        self.folder = Path(tempfile.mkdtemp(prefix="hosts-", dir="/dev/shm"))  # a disk that an overlay can lie on
        self.key, self.shared = self.folder / "key", self.folder / "shared"
        mark = uuid.uuid4().hex[:6]
        self.space = {name: f"{mark}-{name}" for name in names}
        self.address = {name: f"10.231.5.{number}" for number, name in enumerate(names, 1)}
        self.running = {}

    def __enter__(self):
        try:
            self.shared.mkdir()
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
            lines = ["127.0.0.1 localhost", *(f"{self.address[name]} {name}" for name in self.names)]
            (self.folder / "names").write_text("\n".join(lines) + "\n")
            for name in self.names:
                _run("ip", "netns", "add", self.space[name])
                _run("ip", "-n", self.space[name], "link", "set", "lo", "up")
            self._wire()
            for name in self.names:
                self.boot(name)
            for name in self.names:
                self._wait_for_ssh(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in self.names:
            self.cut_power(name)
            subprocess.run(["ip", "netns", "del", self.space[name]], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wire(self):
        hub = self.space[self.names[0]]
        _run("ip", "-n", hub, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", hub, "addr", "add", f"{self.address[self.names[0]]}/24", "dev", "bridge")
        _run("ip", "-n", hub, "link", "set", "bridge", "up")
        for name in self.names[1:]:
            space, end = self.space[name], f"to-{name}"
            _run("ip", "-n", hub, "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", space)
            _run("ip", "-n", hub, "link", "set", end, "master", "bridge", "up")
            _run("ip", "-n", space, "addr", "add", f"{self.address[name]}/24", "dev", "eth0")
            _run("ip", "-n", space, "link", "set", "eth0", "up")

    def boot(self, name):
        """Power on."""
        disk = self.folder / f"disk-{name}"
        disk.mkdir(exist_ok=True)
        with (self.folder / f"{name}.log").open("a") as log:
            self.running[name] = subprocess.Popen(
                ["ip", "netns", "exec", self.space[name], "unshare", "-m", "-p", "-u", "-i", "-f", "--kill-child",
                 "--propagation", "private", "bash", Path(__file__).with_name("host.sh"),
                 name, disk, self.address[name], self.folder / "names", self.key, self.shared, *PYTHON],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _wait_for_ssh(self, name):
        deadline = time.monotonic() + 60
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]
        ask = ["ip", "netns", "exec", self.space[self.names[0]], "ssh", "-i", self.key, *options,
               "-o", "ConnectTimeout=3", f"root@{self.address[name]}", "true"]  # fmt: skip
        while subprocess.run(ask, capture_output=True).returncode:
            if self.running[name].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} does not come up: {(self.folder / f'{name}.log').read_text()[-2000:]}")
            time.sleep(0.3)

    def first_process(self, name):
        """Its id, as this machine counts."""
        space = self.running[name].pid
        return int(Path(f"/proc/{space}/task/{space}/children").read_text().split()[0])

    def processes(self, name, what):
        """Ids of those whose command line has this in it."""
        own, found = os.readlink(f"/proc/{self.first_process(name)}/ns/pid"), []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(path / "ns/pid") == own and what in (path / "cmdline").read_text():
                    found.append(int(path.name))
            except OSError:  # it has ended
                continue
        return found

    def disk(self, name, path):
        """Where a path of the host lies on this machine."""
        return Path(f"/proc/{self.first_process(name)}/root{path}")

    def start(self, name, command, output=subprocess.DEVNULL):
        """Run a line of bash on a host, as someone who has logged in there; its process."""
        first = str(self.first_process(name))
        shell = f"cd {HOME} && . ~/.bashrc && cd ~/project 2> /dev/null; {command}"
        return subprocess.Popen(
            ["nsenter", "-t", first, "-m", "-n", "-p", "-u", "-i", "-r", "-w", "bash", "-c", shell],
            env={"PATH": PATH, "HOME": HOME, "USER": "root", "LANG": "C.UTF-8", "TERM": "xterm", "COLUMNS": "200"},
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True,
        )  # fmt: skip

    def run(self, name, command, timeout=240):
        """Run it to its end: exit status and output."""
        with tempfile.TemporaryFile("w+", dir=self.folder) as file:
            status = self.start(name, command, file).wait(timeout)
            file.seek(0)
            return status, file.read()

    def cut_power(self, name):
        """End all its processes at once, as the kernel does with the first one's end."""
        process = self.running.get(name)
        if process is not None and process.poll() is None:
            try:
                os.kill(self.first_process(name), signal.SIGKILL)
            except (OSError, IndexError):
                process.kill()
            process.wait(10)


def _run(*command):
    subprocess.run(command, check=True, capture_output=True)
