"""The process in which a site works on one experiment: `python -m federation.site.trainer`.

One fresh process per experiment: the shipped code is the only code of its name, no memory or device is held
afterwards, and whatever kills the process ends one attempt, not the envoy. (The engine trains inside the envoy, where
a second experiment with changed code may run modules of the first: component/envoy/envoy.py:159.)

Standard input brings one line of JSON (`TrainerTask`) and then stays open as long as the envoy lives.
"""

import inspect
import json
import logging
import os
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from federation.errors import FederationError
from federation.imports import import_engine
from federation.logs import configure_logging
from federation.settings import Certificates, Failures
from federation.site import failure
from federation.site.audit import AuditLog
from federation.site.local_state import LocalState, own_folder
from federation.site.noted import noted
from federation.site.processes import end_marked, end_own_group, lead_own_group
from federation.wire import archives
from federation.wire.channels import connect
from federation.wire.description import Description

FAILURE_FILE = "failure.txt"
"""Written into the experiment's folder by a trainer that fails; holds what may leave the site of it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerTask:
    """What a trainer must know that is not in the experiment's description.

    `folder` is the unpacked experiment; `state` the folder for `federation.site.local_state`, or None to keep none;
    `cuda_device` the device to work on, or None for the CPU; `failures` what may leave of one.
    """

    folder: str
    experiment: str
    site: str
    director_host: str
    director_port: int
    descriptor: str
    descriptor_params: dict[str, Any]
    certificates: dict[str, str | None]
    cuda_device: int | None = None
    audit: str | None = None
    state: str | None = None
    failures: str = Failures.LINE

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


def build_descriptor(template: str, params: dict[str, Any]) -> Any:
    """The site's shard descriptor from the dotted path of its class and its parameters.

    Raises:
        FederationError: there is no such class, or it does not take these parameters.
    """
    module, _, name = template.rpartition(".")
    try:
        kind = getattr(import_module(module), name)
        inspect.signature(kind).bind(**params)
    except (ImportError, AttributeError) as error:
        raise FederationError(f"shard_descriptor.template {template}: no such class ({error})") from error
    except TypeError as error:
        raise FederationError(f"shard_descriptor.params: {error}; {name} takes {inspect.signature(kind)}") from error
    return kind(**params)


def run(task: TrainerTask) -> None:
    """Do every task of the experiment, until the director says that it is over.

    Raises:
        FederationError: of what the site cannot do, or the director refuses; a task's own error is its cause.
    """
    import_engine()
    folder = Path(task.folder)
    descriptor = build_descriptor(task.descriptor, task.descriptor_params)  # its paths count from the envoy's folder
    description = Description.from_bytes((folder / archives.DESCRIPTION).read_bytes())
    os.chdir(folder)
    sys.path.insert(0, task.folder)  # shipped code comes first
    if description.package in sys.modules:
        raise FederationError(f"the site's shard descriptor imports {description.package}, which the experiment ships")
    from federation.experiment import build
    from federation.site.client import RoundClient
    from federation.site.collaborator import Collaborator
    from federation.site.worker import Worker
    from federation.wire.transfer import SiteTransfers
    from federation.wire.updates import Encoder

    experiment = build(description.entry_point, description.settings)
    experiment.data.shard_descriptor = descriptor
    director = f"{task.director_host}:{task.director_port}"
    audit = AuditLog(
        Path(task.audit) if task.audit else None, site=task.site, director=director, experiment=task.experiment
    )
    certificates = Certificates(**{name: Path(path) if path else None for name, path in task.certificates.items()})
    channel = noted(connect(director, certificates), audit)
    Collaborator(
        task.site,
        Worker(experiment, "cpu" if task.cuda_device is None else f"cuda:{task.cuda_device}"),
        RoundClient(channel, description.id, task.site),
        SiteTransfers(channel, description.id, task.site, folder),
        Encoder(description.update_format),
        keep_optimizer=description.keep_optimizer,
        local_state=LocalState(Path(task.state), own_folder(Path(task.state), task.experiment)) if task.state else None,
        audit=audit,
    ).run()


def main() -> None:
    """Read the task, leave with the envoy, write `failure.txt` on an error."""
    task = TrainerTask(**json.loads(sys.stdin.readline()))
    configure_logging(f"{task.site}/trainer", experiment=task.experiment, site=task.site)
    lead_own_group()
    with suppress(OSError):  # Linux only: when memory runs out, this process is ended rather than the envoy
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    private = failure.folders(task.descriptor_params)
    status = 0
    try:
        run(task)
    except Exception as error:
        logger.exception("the experiment failed")
        text = failure.told(error, task.failures, Path(task.folder), private)
        Path(task.folder, FAILURE_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")
        status = 1
    sys.stdout.flush()
    os._exit(status)  # at once: to take down every library in good order takes seconds, and the site waits for it


def _leave_with_parent() -> None:
    sys.stdin.read()  # ends when the envoy closes the pipe or dies
    end_marked(os.environ)
    end_own_group()


if __name__ == "__main__":
    main()
