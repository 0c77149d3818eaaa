"""The environment: pinned, made once."""

import re
import subprocess
from importlib.metadata import distributions
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[1]
NOT_PINNED = {"pip", "setuptools", "federated-keyword-spotting"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_installed_package_is_pinned() -> None:
    lines = (HOUSE / "constraints.txt").read_text().splitlines()
    pinned = {canonical(name): version for name, _, version in (line.partition("==") for line in lines if "==" in line)}
    installed = {canonical(each.name): each.version.partition("+")[0] for each in distributions()}
    wrong = {
        name: (version, pinned.get(name))
        for name, version in installed.items()
        if name not in NOT_PINNED and pinned.get(name) != version
    }
    assert wrong == {}


def test_the_set_up_is_not_repeated() -> None:
    assert subprocess.run(["make", "--question", ".venv/ready"], cwd=HOUSE, check=False).returncode == 0
