"""What a site's owner is shown of a submission, part by part; `federation.review show` prints it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from federation.site import installed
from federation.site.listing import lines, visible
from federation.site.review import Received, Submission, difference
from federation.wire import archives
from federation.wire.metadata import SHORT

AS_INSTALLED = (
    "Each of these is the same, byte for byte, as the file on this machine, in {folders}.",
    "That says where it comes from, not that anybody has read it: it is worth as much as your trust in whoever",
    "installed that folder, and in everyone who can write to it. `--code` shows these files, too.",
)


@dataclass(frozen=True)
class Part:
    """Something to read: what it is, and its lines, with nothing in them that a terminal would act upon."""

    title: str
    lines: list[str] = field(default_factory=list)


def parts(submission: Submission, approved: tuple[Received, Submission] | None, code: bool = False) -> Iterator[Part]:
    """A submission, part by part: what decides over the code first, then the code.

    approved: what the owner has approved last, if anything. Then of the code only the difference to that is shown; else
    the files that are not as installed here. code: show every file whole all the same.
    """
    names = sorted(submission.files, key=lambda name: (name != archives.DESCRIPTION, name))
    for name in names:
        if not name.endswith(".py"):
            yield Part(name, lines(name, submission.files[name]))
    sources = {name: submission.files[name] for name in names if name.endswith(".py")}
    if code:
        for name, content in sources.items():
            yield Part(name, lines(name, content))
    if approved:
        received, old = approved
        title = f"difference to {received.digest[:SHORT]}, approved last ({visible(received.experiment)})"
        yield Part(title, list(difference(old, submission)) or ["none"])
    elif not code:
        yield from _beside_the_installed(sources)


def _beside_the_installed(sources: dict[str, bytes]) -> Iterator[Part]:
    """The code for an owner who has approved nothing yet, but may have the same package on this machine."""
    packages = list(installed.packages(sources))
    here = dict(chain.from_iterable(package.files.items() for package in packages))
    same = [name for name in sources if here.get(name) == sources[name]]
    if same:
        told = [f"{name}: as installed here, {_count(name, sources[name])}" for name in same]
        folders = ", ".join(visible(str(package.folder)) for package in packages if package.files.keys() & set(same))
        yield Part("as installed here", [*told, *(text.format(folders=folders) for text in AS_INSTALLED)])
    for name, content in sources.items():
        if name not in here:
            yield Part(name, lines(name, content))
        elif here[name] != content:
            yield Part(f"{name}, where it differs from the one here", installed.difference(name, here[name], content))
    if missing := sorted(here.keys() - sources.keys()):
        yield Part("installed here, but not submitted", missing)


def _count(name: str, content: bytes) -> str:
    number = len(lines(name, content)) if content else 0
    return f"{number} line{'' if number == 1 else 's'}"
