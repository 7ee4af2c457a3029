"""Hosts of a network of their own: Linux namespaces on a bridge, apart from this machine's.

A host has its own address, name, process numbers and files under /srv and /run; all share the disk,
which stands for a shared folder. Needs root's rights and iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SUBNET = "10.99.0"

# The first two arguments are the file of names and the host's own; then pairs of a folder and where
# the host is to see it, up to a --, and the command. Mounts are seen by that command alone.
_ON_HOST = """
set -e
mount --bind "$1" /etc/hosts
hostname "$2"
shift 2
mount -t tmpfs shown /mnt
bound=0
while [ "$1" != -- ]; do
  mkdir "/mnt/$bound" && mount --bind "$1" "/mnt/$bound"
  top=/$(echo "$2" | cut -d/ -f2)
  mountpoint -q "$top" || mount -t tmpfs host "$top"
  mkdir -p "$2" && mount --bind "/mnt/$bound" "$2"
  bound=$((bound + 1))
  shift 2
done
shift
exec "$@"
"""


@dataclass
class Host:
    """One host; made by `network`. `aliases` are other names that it answers to."""

    name: str
    aliases: tuple[str, ...]
    address: str
    namespace: str
    network: str
    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        mounts: Mapping[str, Path],
        cwd: str | Path = "/",
        log: str = "log",
    ) -> subprocess.Popen[bytes]:
        """Start a command, which sees each folder of `mounts` under its name; output to a file."""
        self.folder.mkdir(exist_ok=True)
        with (self.folder / log).open("ab") as output:
            process = subprocess.Popen(
                self._inside(command, mounts, cwd),
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.running.append(process)
        return process

    def run(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        mounts: Mapping[str, Path],
        cwd: str | Path = "/",
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, and return what it said."""
        return subprocess.run(
            self._inside(command, mounts, cwd),
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def cut_off(self) -> None:
        """Pull the cable: what is sent from now on is lost, and nobody is told."""
        _ip("-n", self.network, "link", "set", self._port, "down")

    def reconnect(self) -> None:
        """Put the cable back."""
        _ip("-n", self.network, "link", "set", self._port, "up")

    def lose(self) -> None:
        """Cut the power: no process says goodbye."""
        self.cut_off()
        self.kill()

    def kill(self) -> None:
        """Kill all that runs here; each command's processes end with it."""
        for process in self.running:
            process.kill()
        for process in self.running:
            process.wait()
        self.running.clear()

    def said(self, log: str = "log") -> str:
        """The output of the commands that were started."""
        return (self.folder / log).read_text(errors="replace")

    @property
    def _port(self) -> str:
        return f"to-{self.name}"

    def _inside(
        self, command: Sequence[str], mounts: Mapping[str, Path], cwd: str | Path
    ) -> list[str]:
        apart = ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "--uts"]
        # The end of `unshare` is that of its child, and a child that is process 1 takes all along.
        apart += ["--pid", "--fork", "--kill-child", "--mount-proc"]
        pairs = [part for where, folder in mounts.items() for part in (str(folder), where)]
        hosts = str(self.folder.parent / "hosts")
        there = ["env", f"--chdir={cwd}", *command]
        return [*apart, "sh", "-c", _ON_HOST, "sh", hosts, self.name, *pairs, "--", *there]


@contextmanager
def network(folder: Path, hosts: Mapping[str, tuple[str, ...]]) -> Iterator[dict[str, Host]]:
    """Hosts by name, each with other names that it answers to; gone afterwards, with what they run.

    Skips where the rights for it are missing. `folder` has their output, a folder for each.
    """
    skip_without_rights()
    mark = f"rntk-{uuid.uuid4().hex[:6]}"
    made = {
        name: Host(name, aliases, f"{SUBNET}.{number}", f"{mark}-{name}", mark, folder / name)
        for number, (name, aliases) in enumerate(hosts.items(), start=10)
    }
    try:
        _switch(mark)
        for host in made.values():
            _plug_in(host)
        lines = [f"{at.address} {' '.join((at.name, *at.aliases))}\n" for at in made.values()]
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        yield made
    finally:
        for host in made.values():
            host.kill()
        for namespace in (mark, *(host.namespace for host in made.values())):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def skip_without_rights() -> None:
    """Skip the test, with a reason, where no namespaces can be made."""
    for program in ("ip", "unshare", "mount", "hostname", "mountpoint"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install iproute2 util-linux hostname")
    name = f"rntk-{uuid.uuid4().hex[:6]}-try"
    try:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "add", "bridge", "type", "bridge")
        inside = ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "true"]
        subprocess.run(["ip", "netns", "exec", name, *inside], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        why = error.stderr.decode().strip() or f"exit code {error.returncode}"
        pytest.skip(f"no rights to make network namespaces ({why}): run the tests as root")
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _switch(name: str) -> None:
    _ip("netns", "add", name)
    _ip("-n", name, "link", "add", "bridge", "type", "bridge")
    _ip("-n", name, "link", "set", "bridge", "up")


def _plug_in(host: Host) -> None:
    cable = [host._port, "type", "veth", "peer", "name", "eth0", "netns", host.namespace]
    _ip("netns", "add", host.namespace)
    _ip("-n", host.network, "link", "add", *cable)
    _ip("-n", host.network, "link", "set", host._port, "master", "bridge", "up")
    _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _ip("-n", host.namespace, "link", "set", device, "up")
    # Leads nowhere, but programs learn their own address from it.
    _ip("-n", host.namespace, "route", "add", "default", "via", f"{SUBNET}.1")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
