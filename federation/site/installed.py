"""Which files of a submission lie on the owner's own machine already: those of the same package, installed here.

An owner who has this project installed has most of what an experiment ships. A file that is the same, byte for byte,
adds nothing to what is here; one that differs is read fastest by its difference. That says where a file comes from, not
that anybody has read it: it is worth as much as the installation, which also runs the envoy and the owner's commands.
Where experimenter and owner work in one folder, as in the demo, everything is as installed, whatever it does.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import unified_diff
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from federation.errors import ArchiveRefused
from federation.site.listing import lines
from federation.wire import archives


@dataclass(frozen=True)
class Package:
    """A package that is installed here: its folder, and its source files by the names that they have in an archive."""

    folder: Path
    files: dict[str, bytes]


def packages(names: Iterable[str]) -> Iterator[Package]:
    """The packages that the files of a submission belong to, as far as they are installed here; imports none of them.

    names: of the submission's files.
    """
    for top in sorted({PurePosixPath(name).parts[0] for name in names if "/" in name and name.endswith(".py")}):
        folder = _folder(top)
        if folder is not None:
            try:
                yield Package(folder, archives.sources(folder))
            except (ArchiveRefused, OSError):  # it cannot be read, so it is no help in reading
                continue


def difference(name: str, installed: bytes, submitted: bytes) -> list[str]:
    """What a reader would see change from the installed file to the submitted one: a unified diff."""
    before, after = lines(name, installed), lines(name, submitted)
    found = list(unified_diff(before, after, f"installed/{name}", f"submitted/{name}", lineterm=""))
    return found or ["only the ends of its lines, or the end of the file"]


def _folder(package: str) -> Path | None:
    """Where a package lies that an import would find."""
    try:
        spec = find_spec(package)  # of a name without a dot: nothing is imported for it
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.origin or Path(spec.origin).name != "__init__.py":
        return None
    folder = Path(spec.origin).parent
    return folder if folder.name == package else None
