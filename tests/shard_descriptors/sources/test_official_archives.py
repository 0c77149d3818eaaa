"""Tarballs as they may come: whole, cut, damaged and meant to harm; and their download, from a server on loopback."""

import gzip
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shard_descriptors.corpus import CorpusError
from shard_descriptors.sources.archives import ARCHIVES, Archive, Limits, downloaded, fetch, unpack, unpacked
from shard_descriptors.sources.registry import resolve_corpus
from shard_descriptors.sources.speech_commands import load

WORDS, TEST = ARCHIVES
HOUSE = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("KWS_CACHE", str(folder))
    monkeypatch.setenv("no_proxy", "*")
    return folder


@pytest.fixture(scope="session")
def tarballs(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both archives, as tarballs of the official names and shape: members such as ./yes/x.wav."""
    folder = tmp_path_factory.mktemp("tarballs")
    for archive in ARCHIVES:
        pack(tiny_corpus / archive.name, folder / archive.filename)
    return folder


def pack(folder: Path, tarball: Path, top: str = ".") -> None:
    with tarfile.open(tarball, "w:gz", compresslevel=1) as tar:
        tar.add(folder, arcname=top)


def content(root: Path) -> list[tuple[object, ...]]:
    """What a corpus says of its utterances, wherever it lies."""
    return [(u.name, u.start, u.split, u.label, u.speaker) for u in load(root).utterances]


def leftovers(cache: Path) -> list[Path]:
    """What an unpacking that failed should not leave: any file but locks and what was downloaded."""
    return [path for path in cache.glob("archives/**/*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("given", ["", WORDS.filename, TEST.filename])
def test_tarballs(tarballs: Path, tiny_corpus: Path, cache: Path, given: str) -> None:
    root = resolve_corpus(tarballs / given)
    assert cache in root.parents
    assert root.name == load(root).name == "speech_commands"
    assert content(root) == content(tiny_corpus)


@pytest.mark.parametrize("folder", [WORDS, TEST])
def test_one_as_folder_and_one_as_tarball(tarballs: Path, tiny_corpus: Path, tmp_path: Path, folder: Archive) -> None:
    given = tmp_path / "mäine Daten"
    shutil.copytree(tiny_corpus / folder.name, given / folder.name)
    (other,) = {*ARCHIVES} - {folder}
    shutil.copy(tarballs / other.filename, given)
    root = resolve_corpus(given)
    assert content(root) == content(tiny_corpus)
    assert resolve_corpus(given / other.filename) == root
    shutil.rmtree(root)  # of the link only
    assert (given / folder.name).is_dir()


def test_folders_come_before_the_tarballs_beside_them(tarballs: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    given = tmp_path / "both"
    shutil.copytree(tarballs, given)
    shutil.copytree(tiny_corpus, given, dirs_exist_ok=True)
    assert resolve_corpus(given) == given
    assert content(resolve_corpus(given / WORDS.filename)) == content(tiny_corpus)


def test_a_top_folder_is_as_good_as_none(tiny_corpus: Path, tmp_path: Path) -> None:
    for archive in ARCHIVES:
        pack(tiny_corpus / archive.name, tmp_path / archive.filename, top=archive.name)
    assert content(unpacked(tmp_path, progress=False)) == content(tiny_corpus)


def test_unpacked_once(tarballs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = tmp_path / "given"
    shutil.copytree(tarballs, given)
    root = unpacked(given)
    assert "speech_commands_v0.01: 100%" in capsys.readouterr().err
    assert unpacked(given) == root
    assert capsys.readouterr() == ("", "")
    os.utime(given / WORDS.filename, (1, 1))  # another file, for all we know
    assert unpacked(given, progress=False) != root
    assert capsys.readouterr() == ("", "")


def test_one_archive_alone(tarballs: Path, tmp_path: Path) -> None:
    shutil.copy(tarballs / TEST.filename, tmp_path)
    for given in (tmp_path, tmp_path / TEST.filename):
        with pytest.raises(CorpusError, match=rf"has neither {WORDS.filename} nor its folder .*; get it from http"):
            resolve_corpus(given)


def test_a_file_of_another_name(tmp_path: Path) -> None:
    (tmp_path / "words.tar.gz").touch()
    with pytest.raises(CorpusError, match=r'nor one of speech_commands_v0.01.tar.gz and .*"download" to get them'):
        resolve_corpus(tmp_path / "words.tar.gz")


# Cut, damaged, something else


@pytest.mark.parametrize("length", [2, 9, 10, 700, 0.1, 0.5, 0.99, -1, -8])
def test_cut(tarballs: Path, tmp_path: Path, cache: Path, length: float) -> None:
    whole = (tarballs / TEST.filename).read_bytes()
    length = int(length * len(whole)) if 0 < length < 1 else length % len(whole)
    shutil.copy(tarballs / WORDS.filename, tmp_path)
    (tmp_path / TEST.filename).write_bytes(whole[: int(length)])
    words = rf"{TEST.filename} is cut: .* after {length:,} bytes \(the official one has 71,271,436\); get it again"
    with pytest.raises(CorpusError, match=words):
        unpacked(tmp_path, progress=False)
    assert not leftovers(cache)
    (tmp_path / TEST.filename).write_bytes(whole)
    assert load(unpacked(tmp_path, progress=False)).utterances


def test_damaged(tarballs: Path, tmp_path: Path) -> None:
    whole = bytearray((tarballs / TEST.filename).read_bytes())
    for position in (len(whole) // 2, len(whole) - 6):  # within a recording; the checksum
        damaged = whole.copy()
        damaged[position] ^= 0xFF
        (tmp_path / TEST.filename).write_bytes(damaged)
        with pytest.raises(CorpusError, match=r"is not a sound \.tar\.gz archive"):
            unpack(tmp_path / TEST.filename, tmp_path / f"{position}")


def zip_of_nothing() -> bytes:
    with io.BytesIO() as file:
        zipfile.ZipFile(file, "w").close()
        return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"<html>Please log in</html>", zip_of_nothing(), gzip.compress(b"", mtime=0), gzip.compress(b"noise" * 999)],
    ids=["nothing", "a page", "a zip file", "gzip of nothing", "gzip of noise"],  # a time of day in none of them
)
def test_no_tarball(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.tar.gz").write_bytes(data)
    with pytest.raises(CorpusError, match=r"x\.tar\.gz is not a sound \.tar\.gz archive .*; get it again"):
        unpack(tmp_path / "x.tar.gz", tmp_path / "x")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"x\.tar\.gz cannot be read: No such file"):
        unpack(tmp_path / "x.tar.gz", tmp_path / "x")


# Meant to harm


def tar_of(path: Path, *members: tarfile.TarInfo | str, size: int = 4) -> Path:
    """A tarball of these members; names stand for files of `size` zeros."""
    with tarfile.open(path, "w:gz", compresslevel=9) as tar:
        for member in members:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
                member.size = size
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo("yes/odd.wav")
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "name", ["../out.wav", "yes/../../out.wav", "x/../../out.wav", "..", "/tmp/out.wav", "//out.wav", "yes/.."]
)
def test_no_member_leaves_the_folder(tmp_path: Path, name: str) -> None:
    tarball = tar_of(tmp_path / "x.tar.gz", "yes/a.wav", name)
    with pytest.raises(CorpusError, match=rf"{re.escape(repr(name))} would be written outside"):
        unpack(tarball, tmp_path / "x")
    assert not list(tmp_path.rglob("out.wav"))


@pytest.mark.parametrize(
    "member",
    [
        special(tarfile.SYMTYPE, "/etc/passwd"),
        special(tarfile.SYMTYPE, "a.wav"),
        special(tarfile.LNKTYPE, "yes/a.wav"),
        special(tarfile.FIFOTYPE),
        special(tarfile.CHRTYPE),
        special(tarfile.BLKTYPE),
    ],
)
def test_files_and_folders_only(tmp_path: Path, member: tarfile.TarInfo) -> None:
    tarball = tar_of(tmp_path / "x.tar.gz", "yes/a.wav", member)
    with pytest.raises(CorpusError, match=r"'yes/odd\.wav' is a link or a device"):
        unpack(tarball, tmp_path / "x")
    assert not (tmp_path / "x" / "yes" / "odd.wav").exists()


def test_one_name_twice(tmp_path: Path) -> None:
    tarball = tar_of(tmp_path / "x.tar.gz", "yes/a.wav", "./yes//a.wav")
    with pytest.raises(CorpusError, match=r"has './yes//a\.wav' twice"):
        unpack(tarball, tmp_path / "x")


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    tarball = tar_of(tmp_path / "x.tar.gz", "yes", "yes/a.wav")
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        unpack(tarball, tmp_path / "x")


@pytest.mark.parametrize(
    ("names", "size", "limits", "message"),
    [
        (["yes/a.wav"], 100_000_001, Limits(), r"'yes/a\.wav' has 100,000,001 bytes; allowed: 100,000,000"),
        (["a", "b", "c"], 10, Limits(total_bytes=29), "it unpacks to more than 29 bytes"),
        (["a", "b", "c"], 10, Limits(members=2), "it has more than 2 files and folders"),
        ([40_000_000 * "a"], 1, Limits(), "unpacks to far more than its files"),  # the header is the bomb
    ],
)
def test_bombs(tmp_path: Path, names: list[str], size: int, limits: Limits, message: str) -> None:
    tarball = tar_of(tmp_path / "x.tar.gz", *names, size=size)
    assert tarball.stat().st_size < 200_000
    with pytest.raises(CorpusError, match=message):
        unpack(tarball, tmp_path / "x", limits)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path != tarball) < 10_000


def test_zeros_without_end(tmp_path: Path) -> None:
    tarball = tar_of(tmp_path / "x.tar.gz", "yes/a.wav")
    with gzip.open(tarball, "ab", compresslevel=9) as file:
        file.write(bytes(3_000_000))
    with pytest.raises(CorpusError, match="unpacks to far more than its files"):
        unpack(tarball, tmp_path / "x", Limits(total_bytes=2_000_000))


def test_the_official_archive_is_well_within_the_limits() -> None:
    limits = Limits()
    assert limits.total_bytes > 3 * 2.3e9
    assert limits.members > 3 * 64_800
    assert limits.member_bytes > 3 * 96 * 32_000  # the longest noise file


# Killed, at once, no room


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory, tarballs: Path) -> Path:
    """Tarballs that take a second to unpack."""
    folder = tmp_path_factory.mktemp("many")
    tar_of(folder / WORDS.filename, *(f"./yes/{n:08x}_nohash_0.wav" for n in range(6_000)), size=1000)
    shutil.copy(tarballs / TEST.filename, folder)
    return folder


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": f"{HOUSE}:{HOUSE / 'workspace'}"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


RESOLVE = "from shard_descriptors.sources.registry import resolve_corpus; print(resolve_corpus())"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_stopped_half_way(many: Path, cache: Path, how: signal.Signals) -> None:
    process = start("-c", RESOLVE, DATA=str(many))
    until(process, lambda: any(cache.glob("archives/*/*.partial-*/*/*/yes/*.wav")))
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0, err
    assert not list(cache.glob("archives/*/speech_commands"))
    root = unpacked(many, progress=False)
    assert len(list(root.glob("*/yes/*_nohash_0.wav"))) >= 6_000
    assert [path for path in root.parent.iterdir() if path.is_dir()] == [root]  # the remains are gone


def until(process: subprocess.Popen[str], true: Callable[[], bool]) -> None:
    while not true():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def test_two_processes_at_once(many: Path, cache: Path) -> None:
    processes = [start("-c", RESOLVE, DATA=str(many)) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert len({out for out, _ in answers}) == 1
    assert sum("100%" in err for _, err in answers) == 1  # only one of them unpacked
    assert len(list(cache.glob("archives/*/*/"))) == 1


def test_cache_that_is_below_a_file(tarballs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KWS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CorpusError, match=r"cannot be unpacked into .*Not a directory\. Set KWS_CACHE to a folder"):
        unpacked(tarballs, progress=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk(tarballs: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWS_CACHE", str(small_disk))
    with pytest.raises(CorpusError, match=r"No space left on device\. Set KWS_CACHE .* 4 GB free"):
        unpacked(tarballs, progress=False)
    assert not leftovers(small_disk)


# Downloads


class Server(ThreadingHTTPServer):
    """Serves a folder as wished; use it with `with`.

    ranges: it knows Range. cut: bytes after which it breaks an answer off, or with stalls goes silent.
    encoding: what it says of the transfer. length: it says how long a file is. requests: paths and ranges asked for.
    """

    daemon_threads = True

    def __init__(
        self,
        folder: Path,
        ranges: bool = True,
        cut: int = 0,
        stalls: bool = False,
        encoding: str = "",
        length: bool = True,
    ) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.ranges, self.cut, self.stalls, self.encoding = folder, ranges, cut, stalls, encoding
        self.length = length
        self.requests: list[tuple[str, str | None]] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data"

    def __enter__(self) -> "Server":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server, asked = self.server, self.headers["Range"]
        server.requests.append((self.path, asked))
        path = server.folder / os.path.basename(self.path)
        if not path.is_file():
            return self.send_error(404)
        data = path.read_bytes()
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        if server.length:
            self.send_header("Content-Length", str(len(data) - first))
        if server.encoding:
            self.send_header("Content-Encoding", server.encoding)
        self.end_headers()
        with suppress(OSError):  # the caller may have gone
            self.wfile.write(data[first : first + server.cut] if server.cut else data[first:])
            if server.stalls:
                self.wfile.flush()
                server.over.wait(30)
        return None


def archives_of(folder: Path) -> list[Archive]:
    """The archives that lie in a folder, with their own sizes and digests."""
    data = {archive.name: (folder / archive.filename).read_bytes() for archive in ARCHIVES}
    return [Archive(name, len(tar), hashlib.sha256(tar).hexdigest()) for name, tar in data.items()]


def test_downloaded_once(tarballs: Path, tiny_corpus: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archives = archives_of(tarballs)
    with Server(tarballs) as server:
        root = downloaded(server.url, archives)
        assert content(root) == content(tiny_corpus)
        assert f"{TEST.filename}: 100%" in capsys.readouterr().err
        assert downloaded(server.url, archives) == root
        assert server.requests == [(f"/data/{archive.filename}", None) for archive in ARCHIVES]
    assert list((cache / "downloads").iterdir()) == []
    assert root.name == "speech_commands"


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("encoding", ["", "gzip"])
@pytest.mark.parametrize("cut", [0, 1_000_000])
def test_a_download_goes_on_where_it_was_cut(
    tarballs: Path, tmp_path: Path, cut: int, encoding: str, length: bool
) -> None:
    archive = archives_of(tarballs)[1]
    target = tmp_path / "downloads" / archive.filename
    with Server(tarballs, cut=cut, encoding=encoding, length=length) as server:
        fetch(f"{server.url}/{archive.filename}", target, archive)
        starts = [int((asked or "bytes=0-")[6:-1]) for _, asked in server.requests]
    assert target.read_bytes() == (tarballs / archive.filename).read_bytes()
    assert starts == sorted(set(starts))
    assert len(starts) == 1 if not cut else len(starts) >= archive.size // cut
    assert list(target.parent.iterdir()) == [target]


def test_a_server_without_ranges_starts_again(tarballs: Path, tmp_path: Path) -> None:
    archive = archives_of(tarballs)[1]
    target = tmp_path / archive.filename
    with Server(tarballs, ranges=False, cut=500_000) as server:
        with pytest.raises(CorpusError, match=r"cannot be downloaded: .* bytes are kept in .*\.part; ask again and"):
            fetch(f"{server.url}/{archive.filename}", target, archive)
        assert not target.exists()
        assert 0 < target.with_name(f"{target.name}.part").stat().st_size <= 500_000
        server.cut = 0
        fetch(f"{server.url}/{archive.filename}", target, archive)
    assert target.read_bytes() == (tarballs / archive.filename).read_bytes()


def test_wrong_digest(tarballs: Path, tmp_path: Path) -> None:
    archive = archives_of(tarballs)[1]
    forged = tmp_path / "forged"
    forged.mkdir()
    data = bytearray((tarballs / archive.filename).read_bytes())
    data[1000] ^= 1
    (forged / archive.filename).write_bytes(data)
    target = tmp_path / "downloads" / archive.filename
    with (
        Server(forged) as server,
        pytest.raises(CorpusError, match=rf"SHA-256 is .*, not {archive.sha256}\. It was rem"),
    ):
        fetch(f"{server.url}/{archive.filename}", target, archive)
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("size", [10, 9_000_000])
def test_wrong_size(tarballs: Path, tmp_path: Path, size: int, length: bool) -> None:
    archive = archives_of(tarballs)[1]
    other = tmp_path / "other"
    other.mkdir()
    (other / archive.filename).write_bytes(bytes(size))
    target = tmp_path / "downloads" / archive.filename
    words = rf"has {size:,} bytes, not the {archive.size:,}" if length else "cannot be downloaded|is not the official"
    with Server(other, length=length) as server, pytest.raises(CorpusError, match=words):
        fetch(f"{server.url}/{archive.filename}", target, archive)
    assert not target.exists()
    assert sum(path.stat().st_size for path in target.parent.iterdir()) <= archive.size


def test_no_such_file_and_no_server(tarballs: Path, tmp_path: Path) -> None:
    archive = archives_of(tarballs)[1]
    with Server(tarballs) as server, pytest.raises(CorpusError, match=r"404 Client Error.*; ask again"):
        fetch(f"{server.url}/gone.tar.gz", tmp_path / "x.tar.gz", archive)
    with pytest.raises(CorpusError, match=r"cannot be downloaded: .*refused.* set DATA to the folder"):
        fetch(f"{server.url}/{archive.filename}", tmp_path / "x.tar.gz", archive)


def test_a_server_that_goes_silent(tarballs: Path, tmp_path: Path) -> None:
    archive = archives_of(tarballs)[1]
    started = time.monotonic()
    with (
        Server(tarballs, ranges=False, cut=300_000, stalls=True) as server,
        pytest.raises(CorpusError, match="timed out"),
    ):
        fetch(f"{server.url}/{archive.filename}", tmp_path / archive.filename, archive, timeout=0.3)
    assert time.monotonic() - started < 10


DOWNLOAD = """
import sys
from shard_descriptors.sources.archives import Archive, downloaded
print(downloaded(sys.argv[1], [Archive(*each) for each in eval(sys.argv[2])]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_download_goes_on_next_time(tarballs: Path, tiny_corpus: Path, cache: Path, how: int) -> None:
    archives = archives_of(tarballs)
    part = cache / "downloads" / f"{WORDS.filename}.part"
    with Server(tarballs, cut=1_000_000, stalls=True) as server:
        process = start("-c", DOWNLOAD, server.url, repr([(a.name, a.size, a.sha256) for a in archives]))
        until(process, lambda: part.exists() and part.stat().st_size > 500_000)
        process.send_signal(how)
        process.communicate(timeout=60)
    kept = part.stat().st_size
    assert kept > 500_000
    with Server(tarballs) as server:
        assert content(downloaded(server.url, archives, progress=False)) == content(tiny_corpus)
        assert server.requests == [(f"/data/{WORDS.filename}", f"bytes={kept}-"), (f"/data/{TEST.filename}", None)]


def test_two_downloads_at_once(tarballs: Path) -> None:
    archives = repr([(a.name, a.size, a.sha256) for a in archives_of(tarballs)])
    with Server(tarballs) as server:
        processes = [start("-c", DOWNLOAD, server.url, archives) for _ in range(2)]
        answers = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], answers
        assert len({out for out, _ in answers}) == 1
        assert len(server.requests) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_no_room_for_a_download(tarballs: Path, cache: Path) -> None:
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / f"{WORDS.filename}.part").symlink_to("/dev/full")
    with Server(tarballs) as server, pytest.raises(CorpusError, match=r"No space left on device\. Set KWS_CACHE"):
        downloaded(server.url, archives_of(tarballs), progress=False)


@pytest.mark.parametrize("how", [["--download"], []])
def test_from_where_it_is_published(tarballs: Path, how: list[str]) -> None:
    """The command line and DATA=download ask for the official address: a proxy sees it, and gives something else."""
    with Server(tarballs) as server:
        proxy = {"http_proxy": f"http://127.0.0.1:{server.server_port}", "no_proxy": "", "NO_PROXY": ""}
        process = start("-m", "lab", "corpus", *how, DATA="" if how else "download", **proxy)
        _, err = process.communicate(timeout=60)
        assert server.requests == [(f"http://download.tensorflow.org/data/{WORDS.filename}", None)]
    size = (tarballs / WORDS.filename).stat().st_size
    assert process.returncode == 2
    assert f"has {size:,} bytes, not the 1,489,096,277 of the official archive" in err


def test_kws_corpus(tarballs: Path) -> None:
    process = start("-m", "lab", "corpus", DATA=str(tarballs))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    lines = out.splitlines()
    assert Path(lines[0]).is_dir()
    assert [line.split() for line in lines[1:4]] == [
        ["train", "186", "utterances,", "12", "speakers"],
        ["validation", "40", "utterances,", "4", "speakers"],
        ["test", "48", "utterances,", "4", "speakers"],
    ]
    assert lines[4].startswith("These are not the counts of SUPERB KS (51,094, 6,798, 3,081)")
