"""What may travel in an experiment's archive: its description and the Python source of one package, nothing else.

Everything that packs or opens an archive does it here: the notebook packs, the director looks before it takes an
experiment, each envoy looks again for itself. Mends, with the engine's file and line:

- interface/interactive_api/experiment.py:467: whatever lies in the notebook's folder is shipped.
- utilities/workspace.py:99: director and envoys unpack an archive with whatever it holds, as large as it comes.
"""

import io
import re
import stat
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from federation.errors import ArchiveRefused
from federation.wire.description import Description

DESCRIPTION = "experiment.json"
"""The experiment as data (`federation.wire.description`)."""

MEBIBYTE = 1024 * 1024
MAX_FILES = 1000
MAX_ARCHIVE_BYTES = 16 * MEBIBYTE
MAX_FILE_BYTES = 16 * MEBIBYTE
MAX_TOTAL_BYTES = 64 * MEBIBYTE
MAX_RATIO = 100
"""Bytes that one byte of an archive of more than a mebibyte may unpack to; source code stays under 10."""

_SOURCE = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_]{0,99}/){0,10}[A-Za-z_][A-Za-z0-9_]{0,99}\.py")
_CENTRAL_ENTRY = b"PK\x01\x02"
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OverflowError, RuntimeError, OSError)


def why_not(name: str) -> str | None:
    """Why a file of this name may not be in an archive, or None where it may.

    >>> why_not("experiment.json"), why_not("kws/model.py")
    (None, None)
    >>> why_not("../model.py")
    'its path leads out of the experiment'
    """
    if name == DESCRIPTION or _SOURCE.fullmatch(name):
        return None
    windows = PureWindowsPath(name)
    if name.startswith(("/", "\\")) or windows.drive or ".." in (*PurePosixPath(name).parts, *windows.parts):
        return "its path leads out of the experiment"
    if name.endswith(".py"):
        return "a source file's path is of letters, digits and '_' only, as in package/module.py"
    return f"an archive holds {DESCRIPTION} and the Python source files of one package only"


def sources(package: Path) -> dict[str, bytes]:
    """The source files of a package by their names in an archive.

    Folders without an `__init__.py` are no part of the package: runs, data, keys and a notebook's checkpoints stay.

    Raises:
        ArchiveRefused: the folder is no package.
    """
    files = _sources(package)
    if not files:
        raise ArchiveRefused(f"package {package} holds no __init__.py; name the folder of a Python package")
    return files


def pack(files: Mapping[str, bytes], target: Path) -> None:
    """Write an archive; equal files make equal archives.

    Raises:
        ArchiveRefused: a file may not travel; names it.
    """
    with zipfile.ZipFile(target, "w") as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name], zipfile.ZIP_DEFLATED)
    read(target)


def read(archive: Path | bytes) -> dict[str, bytes]:
    """The files of an archive by name, all of them checked; nothing is written or imported.

    Raises:
        ArchiveRefused: it is no archive, it is too large, it holds what may not travel, or its description cannot be
            used; names the file.
    """
    if isinstance(archive, Path):
        check_size(archive.stat().st_size)
        archive = archive.read_bytes()
    check_size(len(archive))
    _refuse_if(archive.count(_CENTRAL_ENTRY) > 2 * MAX_FILES, f"it holds more than {MAX_FILES} files")
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            files = _read(opened, len(archive))
    except _BROKEN as error:
        raise ArchiveRefused(f"the experiment's archive cannot be read: {error}") from error
    _refuse_if(DESCRIPTION not in files, f"it holds no {DESCRIPTION}")
    _check_package(files, describe(files))
    return files


def describe(files: Mapping[str, bytes]) -> Description:
    """The experiment's description among its files.

    Raises:
        ArchiveRefused: it cannot be used; says everything that is wrong with it.
    """
    try:
        return Description.from_bytes(files[DESCRIPTION])
    except ValueError as error:
        raise ArchiveRefused(f"the experiment's archive is refused: {DESCRIPTION}:\n{error}") from None


def check_size(size: int) -> None:
    """Refuse an archive of so many bytes, or so many of them that have arrived, if they are too many.

    Raises:
        ArchiveRefused: they are.
    """
    _refuse_if(size > MAX_ARCHIVE_BYTES, _too_large("it", MAX_ARCHIVE_BYTES))


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Put the files that `read` returned into a folder."""
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _check_package(files: Mapping[str, bytes], description: Description) -> None:
    """One package travels, the entry point's, so that nothing at a site is replaced that has another name."""
    package, module = description.package, description.entry_point.partition(":")[0].replace(".", "/")
    _refuse_if(package in sys.stdlib_module_names, f"its package is named {package}, as a module of Python's own")
    for name in files:
        inside = name == DESCRIPTION or name.startswith(f"{package}/")
        _refuse_file(name, None if inside else f"the experiment's package is {package}")
    if not {f"{module}.py", f"{module}/__init__.py"} & files.keys():
        _refuse_if(True, f"it holds no {module}.py, which {DESCRIPTION} names as entry_point")


def _sources(package: Path) -> dict[str, bytes]:
    if not (package / "__init__.py").is_file():
        return {}
    found = {path.name: path.read_bytes() for path in package.glob("*.py") if path.is_file()}
    for folder in package.iterdir():
        if folder.is_dir() and not folder.is_symlink():
            found |= _sources(folder)
    return {f"{package.name}/{name}": content for name, content in found.items()}


def _read(opened: zipfile.ZipFile, archive_bytes: int) -> dict[str, bytes]:
    entries = [entry for entry in opened.infolist() if not _is_folder(entry)]
    _refuse_if(len(entries) > MAX_FILES, f"it holds {len(entries)} files; allowed: {MAX_FILES}")
    files: dict[str, bytes] = {}
    seen: set[str] = set()
    total = 0
    for entry in entries:
        name = entry.filename
        _refuse_file(name, why_not(name))
        kind = stat.S_IFMT(entry.external_attr >> 16)
        _refuse_file(name, "it is a link or a device" if kind not in (0, stat.S_IFREG) else None)
        _refuse_file(name, "its compression is not deflate" if entry.compress_type not in _COMPRESSIONS else None)
        _refuse_file(name, "it is in the archive twice" if name.casefold() in seen else None)
        seen.add(name.casefold())
        with opened.open(entry) as stream:  # the sizes in the archive are its sender's word: count what comes out
            content = stream.read(MAX_FILE_BYTES + 1)
        total += len(content)
        _refuse_if(len(content) > MAX_FILE_BYTES, _too_large(name, MAX_FILE_BYTES))
        _refuse_if(total > MAX_TOTAL_BYTES, _too_large("it", MAX_TOTAL_BYTES))
        _refuse_if(
            total > max(MEBIBYTE, MAX_RATIO * archive_bytes),
            f"{name}: it unpacks to more than {MAX_RATIO} times the archive's size",
        )
        _refuse_file(name, _not_source(content) if name.endswith(".py") else None)
        files[name] = content
    return files


def _is_folder(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry only names a folder of files that may travel; folders are made as they are needed."""
    return entry.is_dir() and why_not(f"{entry.filename}x.py") is None


def _not_source(content: bytes) -> str | None:
    """Why a file is not the source that it looks like; another encoding can hide code from its reader."""
    lines = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")  # as Python does before it looks for an encoding
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(lines).readline)
        content.decode("utf-8")
    except (SyntaxError, UnicodeDecodeError):
        return "it is not text in UTF-8"
    if encoding not in ("utf-8", "utf-8-sig"):
        return f"its encoding is {encoding}; use UTF-8"
    return "it holds zero bytes" if b"\0" in content else None


def _too_large(what: str, limit: int) -> str:
    return f"{what}: larger than {limit // MEBIBYTE} MiB; ship the recipe of a model, not its weights or data"


def _refuse_file(name: str, reason: str | None) -> None:
    if reason:
        raise ArchiveRefused(f"the experiment's archive is refused: {name!r}: {reason}")


def _refuse_if(problem: bool, reason: str) -> None:
    if problem:
        raise ArchiveRefused(f"the experiment's archive is refused: {reason}")
