"""The peers' own virtual environments, in the user's cache (or KWS_CACHE), made once from pinned requirements."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

PEERS = ("flower", "nvflare")
REQUIREMENTS = Path(__file__).resolve().parent


def environment(peer: str) -> Path:
    """The folder of a peer's virtual environment; made when there is none for today's requirements.

    The requirements name every package, so nothing is resolved: Flower asks for a certifi that is not to be had
    everywhere, and runs with the one before.
    """
    requirements = REQUIREMENTS / f"requirements-{peer}.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("KWS_CACHE") or user_cache_path("federated-keyword-spotting")).expanduser()
    folder = cache / "benchmarks" / f"{peer}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "ready").exists():
            print(f"setting up {folder}", file=sys.stderr, flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            install = ["-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps", "--requirement"]
            subprocess.run([folder / "bin" / "python", *install, requirements], check=True)
            (folder / "ready").touch()
    return folder
