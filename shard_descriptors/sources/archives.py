"""The official Speech Commands archives: fetched when asked for, checked, and unpacked once, into the cache.

Nothing in a tarball is trusted: it may hold files and folders only, below its own folder, and no more than `Limits`.
"""

import gzip
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from shard_descriptors.clips.cache import cache_folder, made_once
from shard_descriptors.corpus import CorpusError
from shard_descriptors.sources.speech_commands import ARCHIVE, TEST_ARCHIVE

URL = "http://download.tensorflow.org/data"
"""Where the official archives lie; what comes from there is known by its SHA-256."""

HEADER_BYTES = 2**20  # a member's header and padding, and what is read ahead: some 12 kB, unless somebody means harm
BLOCK_BYTES = 2**16


@dataclass(frozen=True)
class Archive:
    """A published archive: the folder that it unpacks to, the tarball's bytes, and its SHA-256 in hex digits."""

    name: str
    size: int
    sha256: str

    @property
    def filename(self) -> str:
        """The tarball's name."""
        return f"{self.name}.tar.gz"


# Source: dataset_infos.json of the data set "superb" on Hugging Face, configuration "ks".
ARCHIVES: tuple[Archive, ...] = (
    Archive(ARCHIVE, 1_489_096_277, "743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d"),
    Archive(TEST_ARCHIVE, 71_271_436, "baa084f6b62c91de660ff0588ae4dfc4e4d534aa99ac0e5f406cba75836cbd00"),
)


@dataclass(frozen=True)
class Limits:
    """What a tarball may hold: bytes in all, members, bytes of one; the official one has 2.3e9, 64,800 and 3.1e6."""

    total_bytes: int = 8 * 10**9
    members: int = 250_000
    member_bytes: int = 10**8


def unpacked(path: Path, limits: Limits | None = None, progress: bool = True) -> Path:
    """Folder that holds both archives unpacked: the one given, or one in the cache, made on first use and then kept.

    path: a folder that has each archive as a folder or as a tarball, or one of the tarballs, the other archive
          beside it. A folder without tarballs is given back as it is.

    CorpusError when one archive is not there, a tarball cannot be used, or the cache cannot be written.
    """
    beside = path if path.is_dir() else path.parent
    parts = [path if path.name == archive.filename else _part(beside, archive) for archive in ARCHIVES]
    if not any(part and part.is_file() for part in parts):
        return beside
    for archive, part in zip(ARCHIVES, parts, strict=True):
        if part is None:
            raise CorpusError(
                f"{beside} has neither {archive.filename} nor its folder {archive.name}, and both archives are needed; "
                f"get it from {URL}/{archive.filename}"
            )
    found = [part.resolve() for part in parts if part]
    return _in_cache([_state(part) for part in found], lambda root: _fill(root, found, limits or Limits(), progress))


def downloaded(
    url: str = URL, archives: Sequence[Archive] = ARCHIVES, progress: bool = True, timeout: float = 30.0
) -> Path:
    """Folder in the cache that holds the archives unpacked, downloaded on first use.

    A download that was cut goes on where it ended. The tarballs are removed once they are unpacked.

    url: the folder on the server; timeout: seconds without an answer or a byte until it is given up.

    CorpusError when an archive cannot be had or is not the one expected, or the cache cannot be written.
    """
    tarballs = [cache_folder() / "downloads" / archive.filename for archive in archives]

    def make(root: Path) -> None:
        for archive, tarball in zip(archives, tarballs, strict=True):
            fetch(f"{url}/{archive.filename}", tarball, archive, progress, timeout)
        _fill(root, tarballs, Limits(), progress)

    root = _in_cache([archive.sha256 for archive in archives], make)
    for tarball in tarballs:
        tarball.unlink(missing_ok=True)
    return root


def fetch(url: str, target: Path, archive: Archive, progress: bool = False, timeout: float = 30.0) -> None:
    """Download an archive to `target`, unless it is there.

    What has arrived lies in `target`.part, and is asked for only once; the download goes on as long as every request
    brings something. One process at a time may do this.

    CorpusError when the server cannot be reached or ends early, and for another size or digest than the archive's;
    OSError when the file cannot be written.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    part.touch()
    trouble: Exception | str = "the server ends early"
    most = -1
    with tqdm(total=archive.size, unit="B", unit_scale=True, desc=archive.filename, disable=not progress) as bar:
        while most < (have := part.stat().st_size) < archive.size:
            most = have
            try:
                _go_on(url, part, archive, bar, timeout)
            except (requests.RequestException, HTTPError) as error:
                trouble = error
    if have < archive.size:
        raise CorpusError(
            f"{url} cannot be downloaded: {trouble}. {have:,} of {archive.size:,} bytes are kept in {part}; ask again "
            "and it goes on from there, or get the archive by other means and set DATA to the folder it lies in"
        )
    with open(part, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != archive.sha256:
        part.unlink()
        raise CorpusError(
            f"{url} is not the official archive: its SHA-256 is {digest}, not {archive.sha256}. It was removed; ask "
            "again, and if that does not help, see who changes what you download"
        )
    os.replace(part, target)


def _go_on(url: str, part: Path, archive: Archive, bar: "tqdm[None]", timeout: float) -> None:
    """One request for what `part` lacks; a server that knows no ranges sends all of it again."""
    have = part.stat().st_size
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as answer:
        answer.raise_for_status()
        start = have if answer.headers.get("Content-Range", "").startswith(f"bytes {have}-") else 0
        length = answer.headers.get("Content-Length", "")
        if length.isdecimal() and start + int(length) != archive.size:
            raise CorpusError(
                f"{url} has {start + int(length):,} bytes, not the {archive.size:,} of the official archive; is there "
                "a proxy or a login page between?"
            )
        with open(part, "ab" if start else "wb") as file:
            bar.n = start
            # As they come: some servers call the tarball's own compression that of the transfer.
            for block in answer.raw.stream(BLOCK_BYTES, decode_content=False):
                file.write(block)
                bar.update(len(block))
                if file.tell() > archive.size:
                    return


def unpack(tarball: Path, folder: Path, limits: Limits | None = None, progress: bool = False) -> None:
    """Write the files of a tarball into `folder`, which is made.

    Its members lie at the top, or in one folder of the same name as `folder`.

    CorpusError for a file that is not a whole .tar.gz, a member that is no file or folder, would lie elsewhere or is
    there twice, and for more than `limits`; OSError when the folder cannot be written.
    """
    try:
        file = open(tarball, "rb")  # noqa: SIM115 (closed below; an error of the cache is another matter)
    except OSError as error:
        raise CorpusError(f"{tarball} cannot be read: {error.strerror}") from error
    size = os.fstat(file.fileno()).st_size
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=folder.name, disable=not progress)
    with file, bar, gzip.open(file) as inside:
        try:
            for _ in _extract(_Metered(inside, tarball), tarball, folder, limits or Limits()):
                bar.update(file.tell() - bar.n)
        except EOFError as error:
            whole = {archive.name: f" (the official one has {archive.size:,})" for archive in ARCHIVES}
            raise CorpusError(
                f"{tarball} is cut: it ends too early, after {size:,} bytes{whole.get(folder.name, '')}; get it again"
            ) from error
        except (gzip.BadGzipFile, zlib.error, tarfile.TarError) as error:
            raise CorpusError(f"{tarball} is not a sound .tar.gz archive ({error}); get it again") from error


def _extract(stream: "_Metered", tarball: Path, folder: Path, limits: Limits) -> Iterator[None]:
    """Write the files, one at a time."""
    folder.mkdir()
    total = 0
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for number, member in enumerate(tar, 1):
            name = _place(member, tarball, folder.name)
            total += member.size
            _check_limits(tarball, member, number, total, limits)
            stream.left = member.size + HEADER_BYTES
            if member.isreg() and name:
                if os.path.lexists(folder / name):
                    raise CorpusError(f"{tarball} has {member.name!r} twice; get the archive again")
                tar.extract(member.replace(name=name, deep=False), folder, set_attrs=False, filter="data")
            stream.left = HEADER_BYTES
            yield
    # To the end, for there lies the checksum; tar itself stops before.
    stream.left = limits.total_bytes
    while stream.read(BLOCK_BYTES):
        yield


class _Metered(io.BufferedIOBase):
    """A stream that gives `left` more bytes and then refuses: few packed bytes can claim to be gigabytes of header."""

    def __init__(self, stream: gzip.GzipFile, tarball: Path) -> None:
        self.left = HEADER_BYTES
        self._stream, self._tarball = stream, tarball

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise CorpusError(f"{self._tarball} unpacks to far more than its files; do not use it")
        return data


def _place(member: tarfile.TarInfo, tarball: Path, top: str) -> str:
    """Where a member goes, below its archive's folder; empty for that folder itself."""
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if member.name.startswith("/") or ".." in parts or "\0" in member.name:
        raise CorpusError(f"{tarball}: {member.name!r} would be written outside of its folder; do not use this archive")
    if not member.isreg() and not member.isdir():
        raise CorpusError(f"{tarball}: {member.name!r} is a link or a device, not a file; do not use this archive")
    return "/".join(parts[1:] if parts[:1] == [top] else parts)


def _check_limits(tarball: Path, member: tarfile.TarInfo, number: int, total: int, limits: Limits) -> None:
    if not 0 <= member.size <= limits.member_bytes:
        problem = f"{member.name!r} has {member.size:,} bytes; allowed: {limits.member_bytes:,}"
    elif number > limits.members:
        problem = f"it has more than {limits.members:,} files and folders"
    elif total > limits.total_bytes:
        problem = f"it unpacks to more than {limits.total_bytes:,} bytes"
    else:
        return
    raise CorpusError(f"{tarball} is larger than a Speech Commands archive can be: {problem}")


def _part(folder: Path, archive: Archive) -> Path | None:
    """An archive in a folder: unpacked, else as a tarball."""
    if (folder / archive.name).is_dir():
        return folder / archive.name
    return folder / archive.filename if (folder / archive.filename).is_file() else None


def _state(part: Path) -> tuple[str | int, ...]:
    """What tells a tarball from another one, without reading it; a folder is known by where it lies."""
    state = part.stat()
    return (os.fspath(part),) if part.is_dir() else (part.name, state.st_size, state.st_mtime_ns)


def _fill(root: Path, parts: Sequence[Path], limits: Limits, progress: bool) -> None:
    """Make the folder of a corpus: tarballs are unpacked into it, folders linked."""
    root.mkdir()
    for archive, part in zip(ARCHIVES, parts, strict=True):
        if part.is_dir():
            (root / archive.name).symlink_to(part)
        else:
            unpack(part, root / archive.name, limits, progress)


def _in_cache(key: object, make: Callable[[Path], None]) -> Path:
    """A corpus' folder in the cache; CorpusError when it cannot be written."""
    cache = cache_folder()
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    try:
        # The last folder's name is the corpus': the same at every site, wherever its archives come from.
        return made_once(cache / "archives" / digest / "speech_commands", make)
    except OSError as error:
        raise CorpusError(
            f"the archives cannot be unpacked into {cache}: {error.strerror or error}. Set KWS_CACHE to a folder that "
            "can be written and has 4 GB free"
        ) from error
