"""Digests, decisions and the folder that keeps them."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import FederationError
from federation.site import review
from federation.site.review import Decision, ReviewFolder, Submission, Verdict, difference, refusal, verdict
from federation.wire import archives

PLAN = """aggregator:
  settings:
    gone_seconds: 120.0
    minimum_sites: 2
    rounds_to_train: 3
network:
  settings:
    hash_salt: 0123456789abcdef0123456789abcdef
straggler_handling_policy:
  settings:
    minimum_reporting: 2
    straggler_cutoff_time: .inf
task_runner:
  required_plugin_components:
    framework_adapters: toy.Adapter
"""
FILES = {archives.PLAN: PLAN.encode(), "model_obj.pkl": b"N.", "toy/__init__.py": b"", "toy/a.py": b"STEP = 1\n"}
YES, NO = Decision(True, "", 0.0), Decision(False, "no", 0.0)


def planned(old: str, new: str) -> Submission:
    assert old in PLAN
    return Submission(FILES | {archives.PLAN: PLAN.replace(old, new).encode()})


def stepping(number: int) -> Submission:
    return Submission(FILES | {"toy/a.py": f"STEP = {number}\n".encode()})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0123456789abcdef0123456789abcdef", "f" * 32),
        ("minimum_sites: 2", "minimum_sites: 3"),
        ("minimum_reporting: 2", "minimum_reporting: 3"),
        ("gone_seconds: 120.0", "gone_seconds: 1.0e+16"),
        ("straggler_cutoff_time: .inf", "straggler_cutoff_time: 60"),
    ],
)
def test_the_same_code_is_known_again(old: str, new: str) -> None:
    assert planned(old, new).digest == Submission(FILES).digest
    assert Submission(dict(reversed(FILES.items()))).digest == Submission(FILES).digest


@pytest.mark.parametrize(
    "other",
    [
        Submission(FILES | {"toy/a.py": b"STEP = 2\n"}),
        Submission(FILES | {"model_obj.pkl": b"\x88."}),
        Submission(FILES | {"toy/b.py": b""}),
        Submission({name.replace("a.py", "b.py"): content for name, content in FILES.items()}),
        Submission({name: content for name, content in FILES.items() if name != "toy/__init__.py"}),
        planned("toy.Adapter", "subprocess.Popen"),
        planned("rounds_to_train: 3", "rounds_to_train: 300"),
        planned("gone_seconds: 120.0", "gone_seconds: !!python/object/apply:os.system [ls]"),
        planned("0123456789abcdef0123456789abcdef", "{template: toy.Other}"),
        planned("minimum_sites: 2\n", "minimum_sites: 2\n    log_metric_callback: toy.callback\n"),
    ],
)
def test_other_code_has_another_digest(other: Submission) -> None:
    assert other.digest != Submission(FILES).digest


@given(st.dictionaries(st.sampled_from(["toy/a.py", "toy/b.py", "model_obj.pkl"]), st.binary(max_size=3)))
def test_digests_are_equal_for_equal_files_only(files: dict[str, bytes]) -> None:
    other = Submission({archives.PLAN: b""} | files)
    assert (other.digest == Submission(FILES).digest) == (other.files == FILES)
    assert other.digest == Submission(dict(other.files)).digest


@pytest.mark.parametrize(
    ("accept", "undecided"), [("any", Verdict.RUN), ("approved", Verdict.REFUSE), ("ask", Verdict.WAIT)]
)
def test_policies(accept: str, undecided: Verdict) -> None:
    assert verdict(accept, None) is undecided
    assert verdict(accept, YES) is Verdict.RUN
    assert verdict(accept, NO) is Verdict.REFUSE


def test_an_envoy_warns_that_it_runs_any_code(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from federation.settings import EnvoySettings
    from federation.site.envoy import Envoy

    for accept in ("any", "ask"):
        Envoy(EnvoySettings("site", "localhost", 1, "toy_shard.ToyShard", {"value": 1.0}, accept=accept))
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "review.accept is 'any': the code of everyone who may submit runs here unseen" in warnings[0]


def test_a_refusal_says_which_digest_and_what_to_do() -> None:
    digest = Submission(FILES).digest
    assert f"{review.COMMAND} approve {digest[:12]} --config envoy.yaml" in refusal(digest, None)
    assert refusal(digest, NO).endswith(f"rejected this code (digest {digest[:12]}): no")


def test_the_difference_names_files_and_lines() -> None:
    new = Submission(FILES | {"toy/a.py": b"STEP = 2\n", "toy/new.py": b"import os\n", "model_obj.pkl": b"\x88."})
    told = list(difference(planned("0123456789abcdef0123456789abcdef", "f" * 32), new))
    for line in ("--- approved/toy/a.py", "-STEP = 1", "+STEP = 2", "+++ submitted/toy/new.py", "+import os"):
        assert line in told
    assert "-value None" in told
    assert "+value True" in told
    assert not any("salt" in line for line in told)
    assert list(difference(new, new)) == []


def test_decisions_and_submissions_survive(tmp_path: Path) -> None:
    folder = ReviewFolder(tmp_path / "review")
    assert folder.received() == []
    for number in (1, 2):
        folder.receive(stepping(number), f"experiment {number}")
    one, two = stepping(1).digest, stepping(2).digest
    assert folder.wait_for_decision(one, 0) is False
    folder.decide(one, True, "looked at it")
    folder.decide(two, True)
    folder.decide(two, False, "not any more")
    again = ReviewFolder(tmp_path / "review")
    assert again.wait_for_decision(one, 0)
    found = {each.digest: each for each in again.received()}
    assert [each.experiment for each in found.values()] == ["experiment 1", "experiment 2"]
    assert found[one].decision is not None
    assert (found[one].decision.approved, found[one].decision.reason) == (True, "looked at it")
    assert again.last_approved() == found[one]
    assert again.last_approved(besides=one) is None
    assert again.load(two).files == stepping(2).files
    assert again.find(one[:8].upper()) == found[one]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "review").iterdir()}
    assert (modes, stat.S_IMODE((tmp_path / "review").stat().st_mode)) == ({0o600}, 0o700)


def test_what_cannot_be_found_or_read(tmp_path: Path) -> None:
    folder = ReviewFolder(tmp_path)
    for number in range(20):
        folder.receive(stepping(number), "many")
    with pytest.raises(FederationError, match=r"'' is the beginning of .*give that of one"):
        folder.find("")
    with pytest.raises(FederationError, match="'xyz' is the beginning of none"):
        folder.find("xyz")
    digest = stepping(1).digest
    (tmp_path / f"{digest}.zip").write_bytes((tmp_path / f"{stepping(2).digest}.zip").read_bytes())
    with pytest.raises(FederationError, match="is not what was received"):
        folder.load(digest)
    (tmp_path / f"{digest}.decision.json").write_text("{")
    with pytest.raises(FederationError, match="decide again"):
        folder.decision(digest)


def test_the_folder_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ReviewFolder(tmp_path)
    monkeypatch.setattr(review, "MAX_KEPT", 4)
    for number in range(2):
        folder.receive(stepping(number), "approved")
        folder.decide(stepping(number).digest, True)
    for number in range(2, 9):
        folder.receive(stepping(number), "flood")
    kept = [each.digest for each in folder.received()]
    assert kept == [stepping(number).digest for number in (0, 1, 7, 8)]  # the oldest that nobody approved went first
    monkeypatch.setattr(review, "MAX_KEPT_BYTES", 1)
    folder.receive(stepping(9), "large")
    assert [each.digest for each in folder.received()] == [stepping(1).digest, stepping(9).digest]
    assert folder.decision(stepping(0).digest) is not None  # an approval outlives the code that it was given to


def test_the_commands_explain_themselves(tmp_path: Path) -> None:
    config = tmp_path / "envoy.yaml"
    settings = {"name": "site", "shard_descriptor": {"template": "a.B"}, "review": {"accept": "approved"}}
    config.write_text(yaml.safe_dump(settings | {"audit": None}))
    hidden = Submission(FILES | {"toy/a.py": b"x = 1 # \x1b[2K\n"})
    ReviewFolder(tmp_path / "review").receive(hidden, "a\nname")
    for command, status, words in (
        (("list",), 0, f"{hidden.digest[:12]}  "),
        (("list",), 0, "a\\nname"),
        (("show", hidden.digest), 0, "x = 1 # \\x1b[2K"),
        (("approve", "f" * 64), 2, "review: 'ffff"),
        (("audit",), 2, "no log is kept"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "federation.review", *command, "--config", config], capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
        assert words in done.stdout + done.stderr
