"""A disk that loses its power: file operations as they were called, and what may be left of any beginning of them.

The model is POSIX's word and no file system's habit (Pillai et al., "All File Systems Are Not Created Equal", OSDI
2014): of what a file's writes and a folder's names have become since their last sync, any part may be on disk, and the
last piece of a file may be torn or read as zeros. Only a rename is one step.
"""

import codecs
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from federation.wire import files

Keeps = Callable[[str, int], list[bool]]
"""Which of so many changes to "names" or "data" that were not synced are on disk."""

Left = dict[str, bytes | None]
"""Files by their paths, and folders (None), each before what is in it."""


@dataclass(frozen=True)
class Step:
    """One operation on paths relative to the recorded folder."""

    what: str
    path: str
    other: str = ""
    place: int = 0
    content: bytes = b""


class Recorder:
    """Stands in for `os` in `federation.wire.files`: does what is asked, and notes it; syncs only where `synced`."""

    def __init__(self, root: Path, synced: bool = False) -> None:
        self.root, self.synced, self.steps = root, synced, list[Step]()
        self._open: dict[int, str | None] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _note(self, what: str, path: str | Path | None, **more: Any) -> None:
        if path is not None and (inside := self._inside(path)) is not None:
            self.steps.append(Step(what, inside, **more))

    def _inside(self, path: str | Path) -> str | None:
        return str(Path(path).relative_to(self.root)) if Path(path).is_relative_to(self.root) else None

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        new = not path.exists()
        descriptor = os.open(path, flags, mode)
        self._open[descriptor] = str(path)
        if new:
            self._note("create", path)
        elif flags & os.O_TRUNC:
            self._note("cut", path)
        return descriptor

    def close(self, descriptor: int) -> None:
        self._open.pop(descriptor, None)
        os.close(descriptor)

    def write(self, descriptor: int, content: memoryview) -> int:
        written = os.write(descriptor, content)
        place = os.lseek(descriptor, 0, os.SEEK_CUR) - written
        self._note("write", self._open[descriptor], place=place, content=bytes(content[:written]))
        return written

    def fsync(self, descriptor: int) -> None:
        if self.synced:
            os.fsync(descriptor)
        path = self._open[descriptor]
        self._note("sync_folder" if path and Path(path).is_dir() else "sync", path)

    def ftruncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)
        self._note("cut", self._open[descriptor], place=size)

    def replace(self, source: Path, target: Path) -> None:
        outside = self._inside(source) is None
        content = source.read_bytes() if outside else b""
        os.replace(source, target)
        if outside:  # synced where it was
            self._note("bring", target, content=content)
        else:
            self._note("rename", source, other=self._inside(target))

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target)
        self._note("link", source, other=self._inside(target))

    def unlink(self, path: Path) -> None:
        os.unlink(path)
        self._note("unlink", path)

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        os.mkdir(path, mode)
        self._note("mkdir", path)

    def rmdir(self, path: Path) -> None:
        os.rmdir(path)
        self._note("unlink", path)


CALLS = (
    "openat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,link,linkat,mkdir,rmdir,ftruncate"
)
"""The system calls that change files, for strace."""


def traced(trace: Path, root: Path, inside: tuple[str, ...]) -> list[Step]:
    """The operations that strace has seen in some of the folders under `root`, by paths relative to that.

    What strace is to be called with: `-f -y -s 99999999 -e trace=CALLS -o TRACE`.
    """
    steps: list[Step] = []
    begun: dict[str, str] = {}
    places: dict[str, int | None] = {}  # of open files, by descriptor; None appends
    sizes: dict[str, int] = {}
    for line in trace.read_text(errors="surrogateescape").splitlines():
        process, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            begun[process] = call.removesuffix("<unfinished ...>")
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>", call):
            call = begun.pop(process) + call[resumed.end() :]
        if not (told := re.fullmatch(r"(\w+)\((.*)\) += (-?\d+)(.*)", call, re.S)) or int(told[3]) < 0:
            continue
        name, arguments = told[1], told[2]
        texts = [_unquoted(text) for text in re.findall(r'"((?:[^"\\]|\\.)*)"', arguments)]
        described = re.match(r"\d+<([^>]*)>", arguments)
        names = [text.decode(errors="surrogateescape") for text in texts]
        paths = [f"{described[1]}/{names[0]}" if name.endswith("at") else described[1]] if described else names
        if not paths or not all(_is_inside(Path(path), root, inside) for path in paths):
            continue
        first, *others = (str(Path(path).relative_to(root)) for path in paths)
        if name == "openat":
            new = first not in sizes and "O_CREAT" in arguments
            if new or "O_TRUNC" in arguments:
                steps.append(Step("create" if new else "cut", first))
                sizes[first] = 0
            places[told[3]] = None if "O_APPEND" in arguments else 0
        elif name in ("write", "pwrite64"):
            descriptor = arguments.partition("<")[0]
            place = places[descriptor]
            at = sizes[first] if place is None else place
            content = texts[0][: int(told[3])]
            steps.append(Step("write", first, place=at, content=content))
            sizes[first] = max(sizes[first], at + len(content))
            places[descriptor] = None if place is None else at + len(content)
        elif name in ("fsync", "fdatasync"):
            steps.append(Step("sync" if first in sizes else "sync_folder", first))
        elif name == "ftruncate":
            sizes[first] = int(arguments.rpartition(", ")[2])
            steps.append(Step("cut", first, place=sizes[first]))
        elif name in ("rename", "renameat", "renameat2", "link", "linkat"):
            what = name[:6] if name.startswith("rename") else "link"
            steps.append(Step(what, first, other=others[0]))
            if first in sizes:
                sizes[others[0]] = sizes[first]
            else:  # a folder
                for path in [path for path in sizes if path.startswith(f"{first}/")]:
                    sizes[others[0] + path.removeprefix(first)] = sizes[path]
            if what == "rename":
                sizes.pop(first, None)
        elif name in ("unlink", "unlinkat", "rmdir"):
            steps.append(Step("unlink", first))
            sizes.pop(first, None)
        elif name == "mkdir":
            steps.append(Step("mkdir", first))
    return steps


def _is_inside(path: Path, root: Path, inside: tuple[str, ...]) -> bool:
    return path == root or any(path.is_relative_to(root / each) for each in inside)


def _unquoted(text: str) -> bytes:
    """The bytes of a string as strace writes it."""
    decoded: bytes = codecs.escape_decode(text.encode("ascii", "surrogateescape"))[0]  # type: ignore[attr-defined]
    return decoded


@contextmanager
def recorded(root: Path, synced: bool = False) -> Iterator[Recorder]:
    """Record what `federation.wire.files` does under a folder."""
    recorder = Recorder(root, synced)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", recorder)
        yield recorder


@dataclass(eq=False)
class File:
    now: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def change(self, place: int, content: bytes | None) -> None:
        self.pending.append((place, content))
        self.now = _changed(self.now, place, content)

    def sync(self) -> None:
        self.durable, self.pending = bytes(self.now), []


@dataclass(eq=False)
class Folder:
    now: dict[str, "File | Folder"] = field(default_factory=dict)
    durable: dict[str, "File | Folder"] = field(default_factory=dict)
    pending: list[dict[str, "File | Folder | None"]] = field(default_factory=list)

    def change(self, **names: "File | Folder | None") -> None:
        if names:
            self.pending.append(names)
        self.now = _renamed(self.now, names)

    def sync(self) -> None:
        self.durable, self.pending = dict(self.now), []


class Disk:
    """What a disk holds, and would hold after a power cut."""

    def __init__(self, root: Path) -> None:
        """Begin with what is there, all of it on disk."""
        self.root = _loaded(root)

    def do(self, step: Step) -> None:
        """One more operation."""
        folder, name = self._find(step.path)
        if step.what in ("sync", "sync_folder"):
            (folder.now[name] if name != "." else folder).sync()
        elif step.what in ("create", "mkdir"):
            folder.change(**{name: File() if step.what == "create" else Folder()})
        elif step.what == "bring":
            folder.change(**{name: File(bytearray(step.content), step.content)})
        elif step.what == "unlink":
            folder.change(**{name: None})
        elif step.what in ("rename", "link"):
            other_folder, other = self._find(step.other)
            gone = {name: None} if step.what == "rename" else {}
            if other_folder is folder:
                folder.change(**{other: folder.now[name]} | gone)
            else:  # two folders are two steps
                other_folder.change(**{other: folder.now[name]})
                folder.change(**gone)
        else:
            file = folder.now[name]
            assert isinstance(file, File)
            file.change(step.place, step.content if step.what == "write" else None)

    def left(self, keeps: Keeps, torn: Callable[[bytes], bytes]) -> Left:
        """What a power cut now would leave; `torn` is what becomes of a file's last piece."""
        return dict(_left(self.root, "", keeps, torn))

    def _find(self, path: str) -> tuple[Folder, str]:
        *above, name = Path(path).parts or (".",)
        folder = self.root
        for part in above:
            inner = folder.now[part]
            assert isinstance(inner, Folder)
            folder = inner
        return folder, name


def _changed(content: bytes | bytearray, place: int, written: bytes | None) -> bytearray:
    if written is None:
        return bytearray(content[:place]).ljust(place, b"\0")
    content = bytearray(content).ljust(place, b"\0")
    content[place : place + len(written)] = written
    return content


def _renamed(names: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    return {name: node for name, node in (names | change).items() if node is not None}


def _loaded(path: Path) -> Folder:
    nodes = {
        each.name: _loaded(each) if each.is_dir() else File(bytearray(each.read_bytes()), each.read_bytes())
        for each in path.iterdir()
    }
    return Folder(dict(nodes), nodes)  # type: ignore[arg-type]


def _left(node: Folder, path: str, keeps: Keeps, torn: Callable[[bytes], bytes]) -> Iterator[tuple[str, bytes | None]]:
    names = dict(node.durable)
    for change, kept in zip(node.pending, keeps("names", len(node.pending)), strict=True):
        names = _renamed(names, change) if kept else names
    for name, inner in names.items():
        if isinstance(inner, Folder):
            yield f"{path}{name}", None
            yield from _left(inner, f"{path}{name}/", keeps, torn)
            continue
        content = bytearray(inner.durable)
        kept_changes = keeps("data", len(inner.pending))
        last = max((number for number, kept in enumerate(kept_changes) if kept), default=None)
        for number, (place, written) in enumerate(inner.pending):
            if kept_changes[number]:
                whole = number != last or written is None
                content = _changed(content, place, written if whole else torn(written or b""))
        yield f"{path}{name}", bytes(content)


def write(left: Left, root: Path) -> None:
    """Make it so, in a new folder."""
    root.mkdir()
    for path, content in left.items():
        (root / path).mkdir() if content is None else (root / path).write_bytes(content)
