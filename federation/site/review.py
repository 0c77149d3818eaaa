"""The data owner decides which code runs at a site; the command is `federation.review`.

`envoy.yaml`, section `review`, says whose code the envoy runs: `accept: any` (everyone's; for a demo), `approved` (what
the owner has approved; the rest is refused at once), or `ask` (an experiment waits here until the owner has decided).
What the owner has rejected never runs. The envoy decides by the submission's digest before anything of it is imported
or unpickled.

The engine's own review (`review_experiment`) is not used: an envoy's shows plan.yaml alone and asks on standard input,
a director's ends its loop.
"""

import difflib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

from federation.errors import FederationError
from federation.settings import Accept
from federation.site.listing import lines
from federation.wire import archives
from federation.wire.description import Description
from federation.wire.metadata import DIGEST, SHORT

COMMAND = "python -m federation.review"
MAX_KEPT_BYTES = 256 * archives.MEBIBYTE
MAX_KEPT = 200
MAX_WAITING_EACH = 40
"""Submissions of one experimenter that may wait for the owner, so that one does not take all the room."""


@dataclass(frozen=True)
class Submission:
    """The files of an experiment by name, as `archives.read` has checked them."""

    files: Mapping[str, bytes]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the name and content of every file: the source and the description.

        All of these decide what runs: the description names the entry point, its settings and the rounds. The
        experiment's name is in none of them. Left out are the id, which is another one each time, and who is asked in
        a round, how long it waits and when there are no more (`federation.wire.description.OF_THE_ROUNDS`), which are
        the director's business and follow the number of sites that are online; so the same code with the same settings
        is known again.
        """
        whole = hashlib.sha256()
        for name, content in sorted(self.lasting.items()):
            whole.update(f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode())
        return whole.hexdigest()

    @cached_property
    def description(self) -> Description:
        """The experiment as data."""
        return archives.describe(self.files)

    @property
    def lasting(self) -> dict[str, bytes]:
        """The files without what may differ between submissions of the same code."""
        return {**self.files, archives.DESCRIPTION: self.description.lasting()}


def difference(old: Submission, new: Submission) -> Iterator[str]:
    """The unified diff of two submissions, line by line."""
    before, after = ({name: lines(name, content) for name, content in each.lasting.items()} for each in (old, new))
    for name in sorted(before.keys() | after.keys()):
        yield from difflib.unified_diff(
            before.get(name, []), after.get(name, []), f"approved/{name}", f"submitted/{name}", lineterm=""
        )


@dataclass(frozen=True)
class Decision:
    """What the owner decided, why, and when (seconds since 1970)."""

    approved: bool
    reason: str
    time: float


class Verdict(Enum):
    """What an envoy does with a submission."""

    RUN = "run"
    REFUSE = "refuse"
    WAIT = "wait"


def verdict(accept: str, decision: Decision | None) -> Verdict:
    """What a site's policy and its owner's decision, if any, mean for a submission.

    >>> verdict("ask", None), verdict("any", Decision(False, "", 0.0))
    (<Verdict.WAIT: 'wait'>, <Verdict.REFUSE: 'refuse'>)
    """
    if decision:
        return Verdict.RUN if decision.approved else Verdict.REFUSE
    return {Accept.ANY: Verdict.RUN, Accept.APPROVED: Verdict.REFUSE, Accept.ASK: Verdict.WAIT}[Accept(accept)]


def refusal(digest: str, decision: Decision | None) -> str:
    """Why a submission does not run here, for the notebook."""
    short = digest[:SHORT]
    if decision:
        return f"the site's owner rejected this code (digest {short}): {decision.reason or 'no reason given'}"
    return (
        f"this site runs only code that its owner has approved, which this is not (digest {short}). Ask the owner to "
        f"look at it and approve it, then submit again:\n"
        f"  {COMMAND} show {short} --config envoy.yaml\n"
        f"  {COMMAND} approve {short} --config envoy.yaml"
    )


@dataclass(frozen=True)
class Received:
    """A submission in the review folder; times are seconds since 1970.

    waits: whether the site's policy leaves it to the owner. shown: whether the owner has looked at it. experimenter:
    who has submitted it, as the director says; "" where it does not.
    """

    digest: str
    experiment: str
    time: float
    decision: Decision | None
    shown: bool
    waits: bool
    experimenter: str


class ReviewFolder:
    """Submissions and the owner's decisions, in files that only their owner may read.

    `DIGEST.zip` and `DIGEST.json` are what was received, written by the envoy; `DIGEST.shown` and
    `DIGEST.decision.json` are written by the owner's commands. Decisions stay. There is room for `MAX_KEPT` submissions
    of `MAX_KEPT_BYTES`: the oldest on which nothing waits go first, those that were approved last, and never the one
    that was approved last of all. What waits for the owner is never pushed out; where it fills the folder, newer ones
    are refused.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def receive(self, submission: Submission, experiment: str, *, waits: bool = True, experimenter: str = "") -> None:
        """Keep a submission; `waits`: the owner is to decide on it.

        Raises:
            FederationError: there is no room beside those that wait for the owner.
            OSError: the disk does not take it.
        """
        digest = submission.digest
        waits = waits and self.decision(digest) is None
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        archive = self._path(digest, "zip")
        if not archive.exists():
            unfinished = archive.with_suffix(".new")
            os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT, 0o600))
            try:
                archives.pack(submission.files, unfinished)
                self._make_room(unfinished.stat().st_size, waits, experimenter)
                self._write(self._path(digest, "json"), _about(experiment, waits, experimenter))
                unfinished.replace(archive)
            finally:
                unfinished.unlink(missing_ok=True)
        else:
            self._write(self._path(digest, "json"), _about(experiment, waits, experimenter))

    def decision(self, digest: str) -> Decision | None:
        """What the owner has decided.

        Raises:
            FederationError: the file is damaged.
        """
        path = self._path(digest, "decision.json")
        try:
            return Decision(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise FederationError(f"{path} cannot be read ({error}); decide again, which writes it anew") from error

    def decide(self, digest: str, approved: bool, reason: str = "") -> None:
        """Write down what the owner has decided; an envoy that waits for it goes on within a second.

        Raises:
            FederationError: they would approve what they have not been shown.
        """
        if approved and not self.was_shown(digest):
            raise FederationError(
                f"{digest} has not been shown yet, and only what was shown can be approved; look at it first:\n"
                f"  {COMMAND} show {digest[:SHORT]} --config YAML"
            )
        self._write(self._path(digest, "decision.json"), asdict(Decision(approved, reason, time.time())))

    def note_shown(self, digest: str) -> None:
        """The owner has been shown this submission."""
        self._write(self._path(digest, "shown"), {"time": time.time()})

    def was_shown(self, digest: str) -> bool:
        """Whether the owner has been shown this submission."""
        return self._path(digest, "shown").exists()

    def wait_for_decision(self, digest: str, seconds: float) -> bool:
        """Whether the owner decides within so many seconds."""
        deadline = time.monotonic() + seconds
        while not (decided := self._path(digest, "decision.json").exists()) and time.monotonic() < deadline:
            time.sleep(0.1)  # the owner is another process
        return decided

    def received(self) -> list[Received]:
        """Every submission that is kept, oldest first."""
        found = []
        for path in self.folder.glob("*.zip"):
            with suppress(FileNotFoundError):  # the envoy has just forgotten it
                about = json.loads(self._path(path.stem, "json").read_text(encoding="utf-8"))
                digest, decision = path.stem, self.decision(path.stem)
                waits = about.get("waits", True) and decision is None
                found.append(
                    Received(
                        digest, about["experiment"], about["time"], decision, self.was_shown(digest), waits,
                        about.get("experimenter", ""),
                    )
                )  # fmt: skip
        return sorted(found, key=lambda each: each.time)

    def find(self, prefix: str) -> Received:
        """The one submission whose digest starts so.

        Raises:
            FederationError: there is none, or more than one.
        """
        found = [each for each in self.received() if each.digest.startswith(prefix.lower())]
        if len(found) != 1:
            names = ", ".join(each.digest[:SHORT] for each in found) or "none"
            raise FederationError(f"{prefix!r} is the beginning of {names}; give that of one digest that `list` shows")
        return found[0]

    def load(self, digest: str) -> Submission:
        """The submission with this digest.

        Raises:
            FederationError: the file is damaged.
        """
        submission = Submission(archives.read(self._path(digest, "zip")))
        if submission.digest != digest:
            raise FederationError(f"{self._path(digest, 'zip')} is not what was received; delete it")
        return submission

    def last_approved(self, besides: str = "") -> Received | None:
        """The submission that was approved last, among those that are kept."""
        approved = [each for each in self.received() if each.decision and each.decision.approved]
        times = {each: each.decision.time for each in approved if each.decision and each.digest != besides}
        return max(times, key=lambda each: times[each], default=None)

    def _make_room(self, size: int, waits: bool, experimenter: str) -> None:
        """Forget old submissions until there is room for one of this size more."""
        kept = self.received()
        theirs = sum(each.waits and each.experimenter == experimenter for each in kept)
        if waits and experimenter and theirs >= MAX_WAITING_EACH:
            raise FederationError(
                f"{theirs} submissions of {experimenter} wait for this site's owner already; ask for a decision on them"
            )
        last = self.last_approved()
        candidates = [each for each in kept if not each.waits and each != last]
        candidates.sort(key=lambda each: (bool(each.decision and each.decision.approved), each.time))
        sizes = {each.digest: self._path(each.digest, "zip").stat().st_size for each in kept}
        while len(sizes) >= MAX_KEPT or sum(sizes.values()) + size > MAX_KEPT_BYTES:
            if not candidates:
                waiting = sum(each.waits for each in kept)
                raise FederationError(
                    f"{waiting} submissions wait for this site's owner, and there is no room for another; ask the "
                    f"owner to approve or reject them ({COMMAND} list), then submit again"
                )
            digest = candidates.pop(0).digest
            for ending in ("zip", "json", "shown"):
                self._path(digest, ending).unlink(missing_ok=True)
            del sizes[digest]

    def _path(self, digest: str, ending: str) -> Path:
        assert DIGEST.fullmatch(digest), digest
        return self.folder / f"{digest}.{ending}"

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        unfinished = path.with_name(f"{path.name}.new")
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(content, file)
        unfinished.replace(path)


def _about(experiment: str, waits: bool, experimenter: str) -> dict[str, Any]:
    return {"experiment": experiment, "time": time.time(), "waits": waits, "experimenter": experimenter}
