"""NVIDIA FLARE in a provisioned deployment: a server and a client for each site, connections in the clear on loopback.

The job in `nvflare_job/` is the FedAvg recipe over the same arrays, with a checkpoint written after each round.
"""

import subprocess
from pathlib import Path

import yaml
from addition import Job
from measure import BENCHMARKS, Tagged
from peers import environment

ADMIN = "admin@nvidia.com"
JOB = BENCHMARKS / "nvflare_job"


def run(job: Job) -> None:
    """Provision and start server and clients, submit the job, and wait for its end."""
    folder = Path(job.folder)
    programs = environment("nvflare") / "bin"
    env = {
        "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": f"{BENCHMARKS}:{JOB}",
        "HOME": str(folder),
    }
    kits = provision(programs / "nvflare", folder, job.sites, env)
    with Tagged(folder) as processes:
        processes.start("server", "bash", kits / "server/startup/sub_start.sh", "--once", env=env)
        processes.wait_for("server", "Server has been started|Server started")
        for site in range(1, job.sites + 1):
            processes.start(f"site{site}", "bash", kits / f"site-{site}/startup/sub_start.sh", "--once", env=env)
            processes.wait_for(f"site{site}", "Successfully registered")
        processes.start("submit", programs / "python", JOB / "submit.py", kits / ADMIN, ADMIN, env=env)
        processes.finish("submit")


def provision(program: Path, folder: Path, sites: int, env: dict[str, str]) -> Path:
    """Make the startup kits of server, clients and administrator; the folder that holds them."""
    names = ["workspace.WorkspaceBuilder", "static_file.StaticFileBuilder", "cert.CertBuilder"]
    builders: list[dict[str, object]] = [{"path": f"nvflare.lighter.impl.{name}"} for name in names]
    builders[0]["args"] = {"template_file": ["master_template.yml"]}
    builders[1]["args"] = {"config_folder": "config"}
    builders.append({"path": "nvflare.lighter.impl.signature.SignatureBuilder"})
    site = {"org": "nvidia", "type": "client"}
    project = {
        "api_version": 3,
        "name": "addition",
        "description": "the benchmark's job",
        "connection_security": "clear",
        "participants": [
            {"name": "server", "type": "server", "org": "nvidia", "default_host": "localhost", "fed_learn_port": 8002},
            {"name": ADMIN, "type": "admin", "org": "nvidia", "role": "project_admin"},
            *({"name": f"site-{number}"} | site for number in range(1, sites + 1)),
        ],
        "builders": builders,
    }
    path = folder / "project.yml"
    path.write_text(yaml.safe_dump(project, sort_keys=False))
    command: list[str | Path] = [program, "provision", "-p", path, "-w", folder / "kits"]
    subprocess.run(command, env=env, check=True, capture_output=True, cwd=folder)
    return folder / "kits" / "addition" / "prod_00"
