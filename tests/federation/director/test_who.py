import os
import pwd
import socket
from pathlib import Path

import pytest

from federation import authority
from federation.director.who import Who, of_call, of_local, of_this_process


class Call:
    """What gRPC tells of a call."""

    def __init__(self, certificate: Path | None = None) -> None:
        self._shown = {"x509_pem_cert": [certificate.read_bytes()]} if certificate else {}

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._shown

    def peer(self) -> str:
        return "ipv6:%5B::1%5D:50051"


def test_a_certificates_role_is_told(tmp_path: Path) -> None:
    authority.init(tmp_path / "authority")
    authority.issue(tmp_path / "authority", "experimenter", "ada")
    by = of_call(Call(tmp_path / "authority" / "ada.crt"), "ada")
    assert by == Who("ada", "experimenter", "ipv6:[::1]:50051")
    assert by.fields == {"caller": "ada", "role": "experimenter", "peer": "ipv6:[::1]:50051"}
    assert str(by) == "ada"


def test_in_plain_mode_a_name_has_no_role() -> None:
    assert of_call(Call(), "ada") == Who("ada", "none", "ipv6:[::1]:50051")


def test_an_operator_is_told_by_the_kernel() -> None:
    user = pwd.getpwuid(os.getuid()).pw_name
    assert of_this_process() == Who(user, "operator", f"process {os.getpid()}")
    here, there = socket.socketpair()
    with here, there:
        assert of_local(here) == of_this_process()
    assert str(of_this_process()) == f"operator {user}"


def test_a_user_may_have_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    assert str(of_this_process()) == f"operator {2**31 - 7}"
