"""Who has done something, for the log: a name, a role, and where from."""

import os
import pwd
import socket
import struct
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from federation.director.access import certificate_holder

OPERATOR = "operator"


@dataclass(frozen=True)
class Who:
    """Somebody who calls. role: of their certificate; "none" in plain mode, where a name is only what was said."""

    name: str
    role: str
    peer: str

    def __str__(self) -> str:
        return f"{OPERATOR} {self.name}" if self.role == OPERATOR else self.name

    @property
    def fields(self) -> dict[str, str]:
        """For a line of the log (`federation.logs`)."""
        return {"caller": self.name, "role": self.role, "peer": self.peer}


def of_call(context: Any, name: str) -> Who:
    """Who has made a call on the director's port in this name."""
    holder = certificate_holder(context)
    return Who(name, str(holder.role or "none") if holder else "none", unquote(context.peer()))


def of_this_process() -> Who:
    """The operator at whose hands this command runs."""
    return _operator(os.getuid(), os.getpid())


def of_local(connection: Any) -> Who:
    """The operator at the other end of a local connection, by the kernel's word where it gives it."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return _operator(os.getuid(), None)
    content = connection.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", content)
    return _operator(uid, pid)


def _operator(uid: int, pid: int | None) -> Who:
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:  # a container whose user has no name
        name = str(uid)
    return Who(name, OPERATOR, f"process {pid}" if pid else "this machine")
