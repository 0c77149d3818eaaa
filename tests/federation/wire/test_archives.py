"""What may travel in an archive, and what is refused with its name."""

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from submissions import SMALL, described, zipped

from federation.errors import ArchiveRefused
from federation.wire import archives

PARTS = st.sampled_from(["..", ".", "/", "\\", "C:", "~", "json", "toy", "model.py", "__init__.py", "x.pkl", "\0", " "])
NAMES = st.one_of(
    st.lists(PARTS, min_size=1, max_size=6).map("".join),
    st.lists(PARTS, min_size=1, max_size=6).map("/".join),
    st.text(max_size=12).map(lambda text: f"{text}.py"),
    st.text(max_size=20),
)


def with_entry(entry: zipfile.ZipInfo, content: bytes = b"") -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(archives.DESCRIPTION, described())
        archive.writestr("toy/__init__.py", b"")
        archive.writestr(entry, content)
    return made.getvalue()


def test_what_is_packed_is_read_and_written_again(tmp_path: Path) -> None:
    archives.pack(SMALL, tmp_path / "a.zip")
    archives.pack(dict(reversed(SMALL.items())), tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert archives.read(tmp_path / "a.zip") == SMALL
    archives.write(SMALL, tmp_path / "out")
    written = {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*.*")}
    assert written == SMALL


def test_an_archive_may_name_its_folders_too() -> None:
    assert archives.read(zipped(SMALL | {"toy/": b"", "toy/layers/": b""})) == SMALL


@settings(max_examples=300, deadline=None)
@given(NAMES)
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    folder = Path("/somewhere/deep/inside")
    if archives.why_not(name) is None:
        target = folder / name
        assert target.relative_to(folder).parts == Path(name).parts
        assert not {"..", ".", "~"} & set(target.parts)
        assert "\\" not in name
        assert ":" not in name
        assert name.isprintable()
        assert name == archives.DESCRIPTION or name.endswith(".py")
    try:
        files = archives.read(with_entry(zipfile.ZipInfo(name or "x"))) if "\0" not in name else {}
    except ArchiveRefused:
        return
    assert all(archives.why_not(read) is None for read in files)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/etc/cron.py", "leads out"),
        ("../evil.py", "leads out"),
        ("toy/../../evil.py", "leads out"),
        ("..\\evil.py", "leads out"),
        ("C:evil.py", "leads out"),
        ("C:\\evil.py", "leads out"),
        ("\\\\host\\share\\evil.py", "leads out"),
        ("../", "leads out"),
        ("requirements.txt", "source files"),
        ("authority/envoy.key", "source files"),
        ("cert/root_ca.crt", "source files"),
        ("runs/2026/metrics.jsonl", "source files"),
        ("data/yes.wav", "source files"),
        ("toy/fast.so", "source files"),
        ("toy/__pycache__/model.cpython-311.pyc", "source files"),
        ("other_obj.pkl", "source files"),
        ("toy/model_obj.pkl", "source files"),
        ("model_obj.pkl", "source files"),
        ("plan/plan.yaml", "source files"),
        ("toy/experiment.json", "source files"),
        ("model.py", "package is toy"),
        ("tox/model.py", "package is toy"),
        ("torch/__init__.py", "package is toy"),
        ("toy2/model.py", "package is toy"),
        (".ipynb_checkpoints/model.py", "letters, digits"),
        ("toy/mod\u0435l.py", "letters, digits"),  # a Cyrillic letter
        ("toy/new\nline.py", "letters, digits"),
        ("toy//model.py", "letters, digits"),
    ],
)
def test_files_that_may_not_travel_are_named(name: str, words: str) -> None:
    with pytest.raises(ArchiveRefused) as error:
        archives.read(zipped(SMALL | {name: b""}))
    assert words in str(error.value)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize(("mode", "words"), [(0o120777, "a link"), (0o020666, "a device"), (0o010644, "a device")])
def test_links_and_devices(mode: int, words: str) -> None:
    entry = zipfile.ZipInfo("toy/model.py")
    entry.external_attr = mode << 16
    with pytest.raises(ArchiveRefused, match=rf"'toy/model\.py': it is .*{words}"):
        archives.read(with_entry(entry, b"/etc/passwd"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x = '\u00e9'".encode("latin-1"), "not text in UTF-8"),
        (b"# -*- coding: utf-7 -*-\n+AGkAbQBwAG8AcgB0-", "encoding is utf-7"),
        (b"# coding: rot13\n", "not text in UTF-8|encoding is rot13"),
        (b"x = 1\0", "zero bytes"),
        # Python takes a lone carriage return for the end of a line before it looks for an encoding in the first two.
        (b"\r# coding: utf-7\r+AGkAbQBwAG8AcgB0-", "encoding is utf-7"),
        (b"#\r# coding: latin-1\rx = '\xc3\xa9'", "encoding is iso-8859-1"),
        (b"\x0c\r\n\x0c# vim: set fileencoding=utf-16 :", "utf-16|not text"),
    ],
)
def test_source_that_is_not_what_its_reader_sees(content: bytes, words: str) -> None:
    with pytest.raises(ArchiveRefused, match=words):
        archives.read(zipped(SMALL | {"toy/model.py": content}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_name_twice() -> None:
    for second in ("toy/model.py", "Toy/Model.py"):  # one file, where a disk does not tell cases apart
        made = io.BytesIO(zipped(SMALL))
        with zipfile.ZipFile(made, "a") as archive:
            archive.writestr(second, b"x = 2\n")
        with pytest.raises(ArchiveRefused, match="twice"):
            archives.read(made.getvalue())


@pytest.mark.parametrize(
    ("description", "words"),
    [
        (b"", "experiment.json:\nthe experiment's description is not JSON"),
        (b"{}", "experiment.json:\nbest is missing\nentry_point is missing"),
        (described().replace(b'"version": 1', b'"version": 2'), "this federation reads version 1"),
        (described(entry_point="toy.other:experiment"), "it holds no toy/other.py, which experiment.json names"),
        (described(entry_point="other:experiment"), "'toy/__init__.py': the experiment's package is other"),
        (described(entry_point="json:experiment"), "its package is named json, as a module of Python's own"),
    ],
)
def test_a_description_that_cannot_be_used(description: bytes, words: str) -> None:
    with pytest.raises(ArchiveRefused) as error:
        archives.read(zipped(SMALL | {archives.DESCRIPTION: description}))
    assert words in str(error.value)


def test_the_description_is_read() -> None:
    assert archives.describe(archives.read(zipped(SMALL))).rounds == 3
    deep = {archives.DESCRIPTION: described(entry_point="toy.layers:make"), "toy/layers/__init__.py": b""}
    assert archives.describe(archives.read(zipped(SMALL | deep))).package == "toy"


def test_bombs_are_met_by_what_comes_out() -> None:
    bomb = zipped(SMALL | {"toy/data.py": b" " * (100 * archives.MEBIBYTE)})
    assert len(bomb) < archives.MEBIBYTE
    # Its sizes say that it is small: once in the file's own header, once in the archive's.
    place = bomb.index(b"toy/data.py")
    entry = bomb.rindex(b"PK\x01\x02", 0, bomb.rindex(b"toy/data.py"))
    lying = bytearray(bomb)
    lying[place - 8 : place - 4] = lying[entry + 24 : entry + 28] = struct.pack("<I", 10)
    for archive in (bomb, bytes(lying)):
        tracemalloc.start()
        with pytest.raises(ArchiveRefused, match=r"toy/data\.py|Bad CRC-32"):
            archives.read(archive)
        assert tracemalloc.get_traced_memory()[1] < 3 * archives.MAX_FILE_BYTES
        tracemalloc.stop()


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = zipped(SMALL | {"toy/data.py": b"#" * (2 * archives.MEBIBYTE)})
    with pytest.raises(ArchiveRefused, match=r"toy/data\.py: it unpacks to more than 100 times"):
        archives.read(flat)
    many = {f"toy/m{number}.py": b"" for number in range(archives.MAX_FILES)}
    with pytest.raises(ArchiveRefused, match="1003 files; allowed: 1000"):
        archives.read(zipped(SMALL | many))
    with pytest.raises(ArchiveRefused, match="more than 1000 files"):
        archives.read(zipped(SMALL | many | {f"toy/n{number}.py": b"" for number in range(archives.MAX_FILES)}))
    with pytest.raises(ArchiveRefused, match=r"it holds no experiment\.json"):
        archives.read(zipped({"toy/model.py": b""}))
    monkeypatch.setattr(archives, "MAX_TOTAL_BYTES", 10)
    with pytest.raises(ArchiveRefused, match="ship the recipe of a model"):
        archives.read(zipped(SMALL))
    monkeypatch.setattr(archives, "MAX_ARCHIVE_BYTES", 10)
    with pytest.raises(ArchiveRefused, match="it: larger than"):
        archives.read(zipped(SMALL))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_archive_is_refused_or_read(data: st.DataObject) -> None:
    damaged = bytearray(zipped(SMALL))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(0, len(damaged))) :]
    try:
        files = archives.read(bytes(damaged))
    except ArchiveRefused:
        return
    assert all(archives.why_not(name) is None for name in files)


def test_a_package_is_packed_without_what_lies_beside_its_source(tmp_path: Path) -> None:
    package = tmp_path / "speech"
    stays = ("envoy.key", "clip.wav", "model.safetensors", "notes.md", "runs/model.py", "data/labels.py", "cert/a.pem")
    stays += (".ipynb_checkpoints/model-checkpoint.py", "__pycache__/model.cpython-311.pyc")
    goes = ("__init__.py", "model.py", "layers/__init__.py", "layers/adapter.py")
    for name in (*stays, *goes):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("# text")
    (package / "layers" / "up").symlink_to(package)  # no end to it
    assert archives.sources(package).keys() == {f"speech/{name}" for name in goes}
    with pytest.raises(ArchiveRefused, match=r"holds no __init__\.py"):
        archives.sources(package / "runs")
