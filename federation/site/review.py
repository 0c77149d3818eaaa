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
import re
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
from federation.wire.metadata import DIGEST, SHORT

COMMAND = "python -m federation.review"
MAX_KEPT_BYTES = 256 * archives.MEBIBYTE
MAX_KEPT = 200
_VARIES = re.compile(
    rb"^( +(?:hash_salt|minimum_sites|gone_seconds|retries|minimum_reporting|straggler_cutoff_time): )"
    rb"(?:[0-9a-f]{32}|[0-9.e+]+|\.inf)$",
    re.MULTILINE,
)
"""Lines of a plan that may differ between submissions of the same code: its salt, and when a round may close."""


@dataclass(frozen=True)
class Submission:
    """The files of an experiment by name, as `archives.read` has checked them."""

    files: Mapping[str, bytes]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the name and content of every file: source, pickles and plan.

        All of these decide what runs: a pickle names what it calls, the plan the classes that are built from it. The
        experiment's name is in none of them. Of the plan the salt is left out and the numbers of the `RoundPolicy`,
        which are the director's business and follow the number of sites that are online; so the same code with the
        same plan and objects is known again.
        """
        whole = hashlib.sha256()
        for name, content in sorted(self.lasting.items()):
            whole.update(f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode())
        return whole.hexdigest()

    @property
    def lasting(self) -> dict[str, bytes]:
        """The files without what may differ between submissions of the same code."""
        return {**self.files, archives.PLAN: _VARIES.sub(rb"\1-", self.files[archives.PLAN])}


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
    """A submission in the review folder; times are seconds since 1970."""

    digest: str
    experiment: str
    time: float
    decision: Decision | None


class ReviewFolder:
    """Submissions and the owner's decisions, in files that only their owner may read.

    `DIGEST.zip` and `DIGEST.json` are what was received, written by the envoy; `DIGEST.decision.json` is written by the
    owner's commands. Decisions stay; of the submissions the oldest go when there are more than `MAX_KEPT` or
    `MAX_KEPT_BYTES`, first those that were not approved, never the one that was approved last.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def receive(self, submission: Submission, experiment: str) -> None:
        """Keep a submission.

        Raises:
            OSError: the disk does not take it.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write(self._path(submission.digest, "json"), {"experiment": experiment, "time": time.time()})
        archive = self._path(submission.digest, "zip")
        if not archive.exists():
            unfinished = archive.with_suffix(".new")
            os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT, 0o600))
            archives.pack(submission.files, unfinished)
            unfinished.replace(archive)
        self._forget_the_oldest(submission.digest)

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
        """Write down what the owner has decided; an envoy that waits for it goes on within a second."""
        self._write(self._path(digest, "decision.json"), asdict(Decision(approved, reason, time.time())))

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
                found.append(Received(path.stem, about["experiment"], about["time"], self.decision(path.stem)))
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

    def _forget_the_oldest(self, newest: str) -> None:
        kept = self.received()
        last = self.last_approved()
        candidates = [each for each in kept if each.digest not in (newest, last.digest if last else "")]
        candidates.sort(key=lambda each: (bool(each.decision and each.decision.approved), each.time))
        sizes = {each.digest: self._path(each.digest, "zip").stat().st_size for each in kept}
        for each in candidates:
            if len(sizes) <= MAX_KEPT and sum(sizes.values()) <= MAX_KEPT_BYTES:
                return
            self._path(each.digest, "zip").unlink()
            self._path(each.digest, "json").unlink()
            del sizes[each.digest]

    def _path(self, digest: str, ending: str) -> Path:
        assert DIGEST.fullmatch(digest), digest
        return self.folder / f"{digest}.{ending}"

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        unfinished = path.with_name(f"{path.name}.new")
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(content, file)
        unfinished.replace(path)
