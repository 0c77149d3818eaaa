"""OpenFL 1.6 as it comes: `fx director`, an `fx envoy` for each site, and the interactive API.

Only for small sizes: of wav2vec2-base a round takes minutes and the director more memory than many machines have.
"""

import shutil
import sys
from contextlib import chdir
from pathlib import Path

import yaml
from addition import Job
from addition.tasks import TASKS, Examples, Provider
from measure import BENCHMARKS, Tagged
from openfl.interface.interactive_api.experiment import FLExperiment
from openfl.interface.interactive_api.federation import Federation
from processes import TOYS

FX = Path(sys.executable).parent / "fx"
DIRECTOR_PORT, AGGREGATOR_PORT = 50051, 50052


def run(job: Job) -> None:
    """Start director and envoys, submit the experiment, wait for its end, and take the last model."""
    folder = Path(job.folder)
    with Tagged(folder) as processes:
        start(job, folder, processes)
        workspace = folder / "workspace"
        shutil.copytree(BENCHMARKS / "addition", workspace / "addition")
        with chdir(workspace):  # the engine ships the working folder
            federation = Federation(
                client_id="benchmark", director_node_fqdn="localhost", director_port=DIRECTOR_PORT, tls=False
            )
            experiment = FLExperiment(federation, experiment_name="addition")
            experiment.start(
                model_provider=Provider(),
                task_keeper=TASKS,
                data_loader=Examples(),
                rounds_to_train=job.rounds,
                override_config={"network.settings.agg_port": AGGREGATOR_PORT},
            )
            experiment.stream_metrics(tensorboard_logs=False)
            job.checkpoint(experiment.get_last_model().tensors)


def start(job: Job, folder: Path, processes: Tagged) -> None:
    """Start a director and an envoy for each site, and wait until all have found each other."""
    settings = {"listen_host": "localhost", "listen_port": DIRECTOR_PORT, "sample_shape": ["4"], "target_shape": ["1"]}
    director = write(folder / "director", {"settings": settings})
    processes.start("director", FX, "director", "start", "--disable-tls", "-c", director.name, cwd=director.parent)
    processes.wait_for("director", "Starting director server")
    for site in range(1, job.sites + 1):
        shard = {"template": "toy_shard.ToyShard", "params": {"value": float(site), "size": job.weight(site)}}
        config = write(
            folder / f"site{site}",
            {"params": {"cuda_devices": [], "install_requirements": False}, "shard_descriptor": shard},
        )
        where = ["--disable-tls", "-ec", config.name, "-dh", "localhost", "-dp", str(DIRECTOR_PORT)]
        command: list[str | Path] = [FX, "envoy", "start", "-n", f"site{site}", *where]
        processes.start(f"site{site}", *command, cwd=config.parent, env={"PYTHONPATH": str(TOYS)})
        processes.wait_for(f"site{site}", "Shard was accepted")


def write(folder: Path, settings: dict[str, object]) -> Path:
    """A process's folder with its settings in it."""
    folder.mkdir()
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path
