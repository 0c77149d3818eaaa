"""Flower as it is deployed: a SuperLink and a SuperNode for each site, plain connections on loopback.

The app in `flower_app/` is FedAvg over the same arrays, without evaluation, with a checkpoint written after each round.
"""

from pathlib import Path

from addition import Job
from measure import BENCHMARKS, Tagged
from peers import environment

LINK = "127.0.0.1:8000"
CONFIG = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{LINK}"\ninsecure = true\n'


def run(job: Job) -> None:
    """Start SuperLink and SuperNodes, submit the app, and wait for its end."""
    folder = Path(job.folder)
    programs = environment("flower") / "bin"
    home = folder / "flower"
    home.mkdir()
    (home / "config.toml").write_text(CONFIG)
    env = {
        "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
    }
    with Tagged(folder) as processes:
        options = ["--insecure", "--disable-runtime-dependency-installation"]
        processes.start("superlink", programs / "flower-superlink", *options, env=env)
        processes.wait_for("superlink", "Uvicorn running")
        for site in range(1, job.sites + 1):
            options = ["--insecure", "--superlink", LINK, "--port", str(9100 + site), "--node-config", f"site={site}"]
            processes.start(f"site{site}", programs / "flower-supernode", *options, env=env)
        processes.start("submit", programs / "flwr", "run", BENCHMARKS / "flower_app", "here", "--stream", env=env)
        processes.finish("submit")
