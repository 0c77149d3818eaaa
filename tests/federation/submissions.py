"""Experiments as data, for the tests beside it."""

import io
import zipfile
from typing import Any

from federation.policy import RoundPolicy
from federation.wire import archives
from federation.wire.description import Description


def described(**changes: Any) -> bytes:
    """An `experiment.json` for the package "toy"."""
    values = {
        "id": "0123456789abcdef" * 2,
        "rounds": 3,
        "best_metric": "accuracy",
        "entry_point": "toy:experiment",
        "policy": RoundPolicy(minimum_sites=2),
    }
    return Description(**(values | changes)).to_bytes()


def zipped(files: dict[str, bytes], **extra: bytes) -> bytes:
    """An archive as anybody could make one."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (files | extra).items():
            archive.writestr(name, content)
    return made.getvalue()


SMALL = {archives.DESCRIPTION: described(), "toy/__init__.py": b"", "toy/model.py": b"x = 1\n"}
"""The files of an experiment that may travel."""
