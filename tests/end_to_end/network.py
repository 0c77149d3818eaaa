"""Several hosts on one machine: network namespaces with addresses of their own, joined by a router.

Each host is a namespace with one interface, in a network of its own, and the router between them is another. A cut link
loses every packet without a word, as a pulled cable behind the next switch does: no carrier is lost, nothing is reset,
no ICMP message comes. Limited rates are the kernel's (`tc` tbf); delay and loss of single packets are `wire.py`'s. TCP
is "bbr" where the kernel has it: with one packet in a hundred lost on a way of 100 ms it fills 20 Mbit/s, where "cubic"
gets to 1.5 Mbit/s, and takes minutes for what a test has to see.

Everything lies in namespaces whose names begin with `kws-` and the number of this process; a later run removes what an
earlier one, killed before it could, has left.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from processes import Processes

PREFIX = "kws-"
_numbers = itertools.count(1)
WIRE = Path(__file__).with_name("wire.py")
HOSTS = Path("/etc/netns")  # `ip netns exec` shows a namespace its own files of /etc


class Network:
    """Hosts by name; use as a context manager.

    Raises:
        PermissionError: this machine does not allow it; says why.
    """

    def __init__(self) -> None:
        self._addresses: dict[str, str] = {}
        self._wires: list[subprocess.Popen[bytes]] = []
        _check_that_it_may_be()
        _remove(leftovers())
        self._prefix = f"{PREFIX}{os.getpid()}-{next(_numbers)}-"
        self._router = self._make("router")
        _ip("netns", "exec", self._router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def add(self, host: str, mbit: float | None = None, milliseconds: float = 0, loss: float = 0) -> str:
        """Make a host; its address.

        Args:
            mbit: the rate of its link, in Mbit/s each way; None: as fast as the machine.
            milliseconds: how long each packet is on its way, in each direction.
            loss: the share of packets that are lost, in each direction.
        """
        number = len(self._addresses) + 1
        namespace, port, network = self._make(host), f"port{number}", f"10.77.{number}"
        if milliseconds or loss:
            self._start_wire(port, mbit, milliseconds, loss)
        else:
            _ip("-n", self._router, "link", "add", port, "type", "veth", "peer", "name", "uplink")
        _ip("-n", self._router, "link", "set", "uplink", "netns", namespace)
        for where, device, last in ((self._router, port, 1), (namespace, "uplink", 2)):
            _ip("-n", where, "address", "add", f"{network}.{last}/24", "dev", device)
            _ip("-n", where, "link", "set", device, "up")
            if mbit and not (milliseconds or loss):
                shape = f"qdisc add dev {device} root tbf rate {mbit}mbit burst 32k latency 100ms"
                _run("tc", "-n", where, *shape.split())
        _ip("-n", namespace, "route", "add", "default", "via", f"{network}.1", *_congestion_control())
        self._addresses[host] = f"{network}.2"
        self._tell_names()
        return self._addresses[host]

    def at(self, host: str, *command: str | Path) -> list[str]:
        """The command that runs another one at a host."""
        return ["ip", "netns", "exec", self._prefix + host, *map(str, command)]

    def cut(self, *hosts: str) -> None:
        """Lose every packet to and from these hosts."""
        self._rules("add", hosts)

    def mend(self, *hosts: str) -> None:
        """End what `cut` began."""
        self._rules("del", hosts)

    def sent(self, host: str) -> int:
        """Bytes that a host has sent so far, whether they arrived or not."""
        told = json.loads(_ip("-n", self._prefix + host, "-s", "-j", "link", "show", "uplink"))
        return int(told[0]["stats64"]["tx"]["bytes"])

    def wait_until_sent(self, host: str, count: int, seconds: float) -> float:
        """Wait until a host has sent so many bytes altogether; the seconds that took.

        Raises:
            TimeoutError: it has not within `seconds`.
        """
        started = time.monotonic()
        while self.sent(host) < count:
            if time.monotonic() - started > seconds:
                raise TimeoutError(f"{host} has sent {self.sent(host)} bytes of {count} in {seconds:.0f} s")
            time.sleep(0.02)
        return time.monotonic() - started

    def remove(self) -> None:
        """End what runs at the hosts, and remove them."""
        for wire in self._wires:
            wire.kill()
            wire.wait(10)
        _remove([name for name in _namespaces() if name.startswith(self._prefix)])

    def _make(self, host: str) -> str:
        name = self._prefix + host
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
        return name

    def _start_wire(self, port: str, mbit: float | None, milliseconds: float, loss: float) -> None:
        command = self.at(
            "router", sys.executable, WIRE, port, "uplink", str(mbit or 1000), str(milliseconds), str(loss)
        )
        wire = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._wires.append(wire)
        assert wire.stdout is not None
        if wire.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the wire at {port} has not come up; its message is above")

    def _tell_names(self) -> None:
        lines = ["127.0.0.1 localhost", *(f"{address} {name}.test" for name, address in self._addresses.items())]
        for host in self._addresses:
            folder = HOSTS / (self._prefix + host)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "hosts").write_text("\n".join(lines) + "\n")
            (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # nobody is there, and says so at once

    def _rules(self, action: str, hosts: tuple[str, ...]) -> None:
        for host in hosts:
            for side in ("from", "to"):
                _ip("-n", self._router, "rule", action, side, self._addresses[host], "blackhole")


class Hosts(Processes):
    """Processes that run at the hosts of a network."""

    def __init__(self, network: Network, logs: Path) -> None:
        super().__init__(logs)
        self.network = network

    def start_at(
        self, host: str, name: str, *command: str | Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a named process at a host; `ip netns exec` becomes the process itself."""
        return self.start(name, *self.network.at(host, *command), env=env)


def leftovers() -> list[str]:
    """Namespaces of earlier runs that have ended."""
    return [name for name in _namespaces() if name.startswith(PREFIX) and not _alive(name.split("-")[1])]


def _check_that_it_may_be() -> None:
    missing = [program for program in ("ip", "tc") if not shutil.which(program)]
    if missing:
        raise PermissionError(f"no {' and no '.join(missing)} on this machine (package iproute2)")
    trial = f"{PREFIX}{os.getpid()}-trial"
    try:
        _ip("netns", "add", trial)
        _run("ip", "netns", "exec", trial, "test", "-w", "/dev/net/tun")
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip() or "no /dev/net/tun to write to"
        raise PermissionError(f"this machine forbids network namespaces: {reason}") from None
    finally:
        _remove([trial])


def _congestion_control() -> list[str]:
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    return ["congctl", "bbr"] if "bbr" in available else []


def _remove(namespaces: list[str]) -> None:
    for name in namespaces:
        for number in subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        shutil.rmtree(HOSTS / name, ignore_errors=True)
    with suppress(OSError):
        HOSTS.rmdir()  # only when it is empty


def _namespaces() -> list[str]:
    return [line.split()[0] for line in _ip("netns", "list").splitlines()]


def _alive(number: str) -> bool:
    return number.isdigit() and Path("/proc", number).exists()


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
