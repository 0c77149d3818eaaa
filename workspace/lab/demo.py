"""The main job on one machine: three processes, one notebook, live progress, a table at the end.

Starts what a person would start by hand (director/start_director.sh, envoy/start_envoy.sh, envoy_two/start_envoy.sh),
runs workspace/keyword_spotting.ipynb in a real kernel against them, and stops everything however it ends.
"""

import asyncio
import ctypes
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from lab import HOUSE, tables
from lab.asked import Asked
from lab.records import Run, follow
from shard_descriptors.sources.registry import resolve_corpus
from shard_descriptors.sources.speech_commands import load

NOTEBOOK = HOUSE / "workspace" / "keyword_spotting.ipynb"
KERNEL = "notebook"
SITES = ("envoy", "envoy_two")
LOG_TAIL = 20
STOP_SECONDS = 10


class DemoError(Exception):
    """The demo could not finish; says which process failed and why, with the last lines of its log."""


@dataclass
class Services:
    """The processes of the demo, their logs, and what to do with them."""

    logs: Path
    environment: Mapping[str, str]
    running: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    async def start(self, name: str, *command: str) -> None:
        """Start a process that logs to `<name>.log`; it dies with this one."""
        with (self.logs / f"{name}.log").open("wb") as log:
            self.running[name] = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,  # Ctrl-C reaches only this process, which stops the others in order
                preexec_fn=_die_with_parent,
            )

    async def wait_for_line(self, name: str, pattern: str) -> str:
        """The first group of the first line in the log that matches."""
        while True:
            found = re.search(pattern, self._log(name))
            if found:
                return found[1]
            if self.running[name].returncode is not None:
                raise DemoError(self.obituary(name))
            await asyncio.sleep(0.05)

    async def first_to_end(self, name: str) -> None:
        """Return when the process of that name has done its work.

        Raises:
            DemoError: it failed, or another process ended before it; with the last lines of the log.
        """
        waiting = {asyncio.create_task(process.wait()): each for each, process in self.running.items()}
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        ended = [waiting[task] for task in done]
        if ended != [name] or self.running[name].returncode != 0:
            raise DemoError(self.obituary(next((each for each in ended if each != name), name)))

    async def stop(self) -> None:
        """Ask every process to stop, then make it."""
        for process in self.running.values():
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.terminate()
        for process in self.running.values():
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    def obituary(self, name: str) -> str:
        """How a process ended, and the last lines of its log."""
        status = self.running[name].returncode
        how = f"was ended by {signal.Signals(-status).name}" if status and status < 0 else f"ended with status {status}"
        return f"{name} {how}; the last lines of {self.logs / name}.log:\n{self.tail(name)}"

    def tail(self, name: str) -> str:
        """The last lines of a log, indented."""
        return "\n".join(f"    {line}" for line in self._log(name).splitlines()[-LOG_TAIL:])

    def _log(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")


Commands = Callable[[Path], Mapping[str, Sequence[str]]]
"""By site, the command of its envoy; given a folder for its settings, which is gone when the demo is over."""


def of_this_folder(_: Path) -> Mapping[str, Sequence[str]]:
    """The two sites of this workspace."""
    return {site: [str(HOUSE / site / "start_envoy.sh")] for site in SITES}


def run_demo(
    asked: Asked, name: str | None = None, sites: Commands = of_this_folder, data_path: str | None = None
) -> int:
    """Run the main job; the exit status for the shell.

    sites: how the envoys are started. data_path: where the corpus lies; None: as DATA says, else synthetic speech.
    """
    started = time.monotonic()
    data = resolve_corpus(data_path)
    load(data)  # a corpus that cannot be used is an error now, not in three logs
    run = Run.create(HOUSE / "runs", name)
    print(f"corpus      {data}\nrun         {run.folder}", flush=True)
    try:
        asyncio.run(_until_stopped(run, data, asked, sites))
    except DemoError as error:
        print(f"\nThe demo failed. {error}\n\nAll logs: {run.folder / 'logs'}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        print(f"\nStopped; every process has ended. What was measured so far: {run.folder}", file=sys.stderr)
        return 130
    _show_results(run, time.monotonic() - started)
    return 0


async def _until_stopped(run: Run, data: Path, asked: Asked, sites: Commands) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with _federation(run, data, asked, sites) as services:
        progress = [
            asyncio.create_task(_show_progress(own, label)) for label, own in labelled(run, asked.seeds).items()
        ]
        try:
            result = str(run.folder / NOTEBOOK.name)
            await services.start(KERNEL, sys.executable, "-m", "lab.notebook", str(NOTEBOOK), result)
            await services.first_to_end(KERNEL)
            await asyncio.sleep(0.5)  # the last lines of progress
        finally:
            for each in progress:
                each.cancel()


@asynccontextmanager
async def _federation(run: Run, data: Path, asked: Asked, sites: Commands) -> AsyncIterator[Services]:
    """Director and envoys on loopback and a free port; stopped at the end, however it comes.

    asked: what the notebook is told by its environment.
    """
    logs, scratch = run.folder / "logs", run.folder / "tmp"
    for folder in (logs, scratch):
        folder.mkdir()
    environment = (
        os.environ
        | asked.to_environment()
        | {
            "DATA": str(data),
            "TMPDIR": str(scratch),
            "KWS_RUN": str(run.folder),
            "PYTHONUNBUFFERED": "1",
        }
    )
    services = Services(logs, environment)
    try:
        await services.start(
            "director", str(HOUSE / "director" / "start_director.sh"), "--port", "0", "--state", str(scratch / "state")
        )
        port = await services.wait_for_line("director", r"listening on .*:(\d+)")
        environment["KWS_DIRECTOR"] = f"localhost:{port}"
        commands = sites(scratch)
        for site, command in commands.items():
            await services.start(site, *command, "--director-port", port)
        print(f"federation  director on localhost:{port}, sites {', '.join(commands)}\n", flush=True)
        yield services
    finally:
        await services.stop()
        shutil.rmtree(scratch, ignore_errors=True)


def labelled(run: Run, seeds: Sequence[int]) -> dict[str, Run]:
    """Where each seed is recorded (`lab.session.trials`), by how its lines begin; of a single one with nothing."""
    if len(seeds) < 2:
        return {"": run}
    first, *others = seeds
    return {f"seed {first}  ": run} | {f"seed {seed}  ": run.of_seed(seed) for seed in others}


async def _show_progress(run: Run, label: str = "") -> None:
    """Print a line for every round, site and task, with its metrics."""
    run.metrics_path.touch()
    lines = follow(run.metrics_path)
    shown: dict[tuple[int, str, str], dict[str, float]] = {}
    for line in lines:
        if not line:
            await asyncio.sleep(0.2)
            continue
        key = (line["round"], line["site"], line["task"])
        if line["metric"] == "took_part" and not line["value"]:
            print(f"{label}round {key[0]:3d}  {key[1]:<16} left out", flush=True)
        values = shown.setdefault(key, {})
        values[line["metric"]] = line["value"]
        expected = ["loss", "accuracy"] if line["task"] == "train" else tables.shown_each_round()
        complete = line["metric"] in expected and values.keys() >= set(expected)
        if complete and (line["site"] != tables.GLOBAL or line["task"] == "validate_global"):
            scores = "  ".join(f"{metric} {values[metric]:.3f}" for metric in expected)
            print(f"{label}round {key[0]:3d}  {key[1]:<16} {key[2]:<16} {scores}", flush=True)


def _show_results(run: Run, seconds: float) -> None:
    summary = run.summary()
    print("\nRounds by site, on validation speakers (`average` is the federated model)\n")
    print(tables.rounds(run.metrics()).to_string(float_format="{:.3f}".format, na_rep=""))
    print(f"\nFinal models on {summary['test_utterances']} test utterances of {summary['test_of']}")
    print(f"(in brackets: 95 % intervals over {summary['drawn']})\n")
    print(tables.results(summary, every=False).to_string())
    if summary["work"]:
        print("\nWhat it cost each site\n")
        print(tables.work_by_site(run.metrics()).to_string(float_format="{:.3g}".format))
    print(f"\ncorpus      {summary['corpus']}{' (synthetic speech)' if summary['corpus'] == 'synthetic' else ''}")
    print(f"time        {seconds / 60:.1f} min")
    for name, path in (
        ("run", run.folder),
        ("plots", run.folder / "curves.png"),
        ("notebook", run.folder / NOTEBOOK.name),
    ):
        print(f"{name:<11} {path}")
    print(f"summary     {run.summary_path}", flush=True)


def _die_with_parent() -> None:
    """On Linux, let the kernel end this child when its parent is gone, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
