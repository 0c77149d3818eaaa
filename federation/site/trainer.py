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
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from federation.errors import FederationError
from federation.imports import import_engine
from federation.logs import configure_logging
from federation.site.audit import AuditLog
from federation.site.local_state import LocalState

FAILURE_FILE = "failure.txt"
"""Written into the experiment's folder by a trainer that fails; holds the traceback."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerTask:
    """What a trainer must know that is not in the shipped plan.

    `folder` is the unpacked experiment; `state` the folder for `federation.site.local_state`, or None to keep none.
    """

    folder: str
    experiment: str
    site: str
    director_host: str
    director_port: int
    descriptor: str
    descriptor_params: dict[str, Any]
    cuda_devices: list[int]
    certificates: dict[str, str | None]
    audit: str | None = None
    state: str | None = None

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
    """Do every task of the experiment, until the aggregator says that it is over."""
    import_engine()
    descriptor = build_descriptor(task.descriptor, task.descriptor_params)  # its paths count from the envoy's folder
    os.chdir(task.folder)
    sys.path.insert(0, task.folder)  # shipped code comes first
    stale = sorted(path.parent.name for path in Path().glob("*/__init__.py") if path.parent.name in sys.modules)
    if stale:
        raise FederationError(f"the site's shard descriptor imports {', '.join(stale)}, which the experiment ships")
    from openfl.federated import Plan

    from federation.site.collaborator import AggregatorClient, Collaborator

    plan = Plan.parse(plan_config_path=Path("plan/plan.yaml"))
    client = AggregatorClient(
        folder=Path(task.folder),
        agg_addr=task.director_host,
        agg_port=task.director_port,
        tls=task.certificates["root_certificate"] is not None,
        disable_client_auth=False,
        aggregator_uuid=plan.aggregator_uuid,
        federation_uuid=plan.federation_uuid,
        **task.certificates,
    )
    collaborator = plan.get_collaborator(task.site, client=client, shard_descriptor=descriptor)
    if not isinstance(collaborator, Collaborator):  # another one would send without a line in the audit log
        name = f"{Collaborator.__module__}.{Collaborator.__qualname__}"
        raise FederationError(f"the plan's collaborator.template is {type(collaborator)}; allowed: {name}")
    collaborator.set_available_devices(cuda=tuple(task.cuda_devices))
    if task.audit:
        director = f"{task.director_host}:{task.director_port}"
        log = AuditLog(Path(task.audit), site=task.site, director=director, experiment=task.experiment)
        collaborator.audit = log
    collaborator.local_state = LocalState(Path(task.state)) if task.state else None
    collaborator.run()


def main() -> None:
    """Read the task, leave with the envoy, write `failure.txt` on an error."""
    task = TrainerTask(**json.loads(sys.stdin.readline()))
    configure_logging(f"{task.site}/trainer", experiment=task.experiment, site=task.site)
    with suppress(OSError):  # Linux only: when memory runs out, this process is ended rather than the envoy
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    status = 0
    try:
        run(task)
    except Exception:
        text = traceback.format_exc()
        Path(task.folder, FAILURE_FILE).write_text(text, encoding="utf-8")
        logger.error("%s", text)
        status = 1
    sys.stdout.flush()
    os._exit(status)  # at once: to take down every library in good order takes seconds, and the site waits for it


def _leave_with_parent() -> None:
    sys.stdin.read()  # ends when the envoy closes the pipe or dies
    os._exit(1)


if __name__ == "__main__":
    main()
