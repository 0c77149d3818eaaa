"""Digests, decisions and the folder that keeps them."""

import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from submissions import SMALL, described

from federation import review as review_command
from federation.errors import FederationError
from federation.policy import RoundPolicy
from federation.site import review
from federation.site.review import Decision, ReviewFolder, Submission, Verdict, difference, refusal, verdict
from federation.wire import archives

FILES = {**SMALL, "toy/a.py": b"STEP = 1\n"}
YES, NO = Decision(True, "", 0.0), Decision(False, "no", 0.0)


def changed(**changes: object) -> Submission:
    return Submission(FILES | {archives.DESCRIPTION: described(**changes)})


def stepping(number: int) -> Submission:
    return Submission(FILES | {"toy/a.py": f"STEP = {number}\n".encode()})


def approve(folder: ReviewFolder, submission: Submission, reason: str = "") -> None:
    """Look at it, and approve it."""
    folder.note_shown(submission.digest)
    folder.decide(submission.digest, True, reason)


@pytest.mark.parametrize(
    "same",
    [
        changed(id="f" * 32),
        changed(policy=RoundPolicy(minimum_sites=3, round_seconds=60.0, gone_seconds=1e7, retries=2)),
        Submission(dict(reversed(FILES.items()))),
        Submission(FILES | {archives.DESCRIPTION: described().replace(b"\n", b"\n  ")}),
    ],
)
def test_the_same_code_is_known_again(same: Submission) -> None:
    assert same.digest == Submission(FILES).digest


@pytest.mark.parametrize(
    "other",
    [
        Submission(FILES | {"toy/a.py": b"STEP = 2\n"}),
        Submission(FILES | {"toy/b.py": b""}),
        Submission({name.replace("a.py", "b.py"): content for name, content in FILES.items()}),
        Submission({name: content for name, content in FILES.items() if name != "toy/__init__.py"}),
        changed(rounds=300),
        changed(entry_point="toy:other"),
        changed(settings={"step": 1}),
        changed(best_metric="loss"),
        changed(best_direction="min"),
        changed(rule={"name": "median"}),
        changed(update_format="int8"),
        changed(keep_optimizer=False),
    ],
)
def test_other_code_has_another_digest(other: Submission) -> None:
    assert other.digest != Submission(FILES).digest


@given(st.dictionaries(st.sampled_from(["toy/a.py", "toy/b.py", "toy/model.py"]), st.binary(max_size=3)))
def test_digests_are_equal_for_equal_files_only(files: dict[str, bytes]) -> None:
    other = Submission({archives.DESCRIPTION: described()} | files)
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
    new = Submission(
        FILES | {"toy/a.py": b"STEP = 2\n", "toy/new.py": b"import os\n", archives.DESCRIPTION: described(rounds=9)}
    )
    told = list(difference(changed(id="f" * 32), new))
    for line in ("--- approved/toy/a.py", "-STEP = 1", "+STEP = 2", "+++ submitted/toy/new.py", "+import os"):
        assert line in told
    assert '-  "rounds": 3,' in told
    assert '+  "rounds": 9,' in told
    assert not any('"id"' in line for line in told)
    assert list(difference(new, new)) == []


def test_decisions_and_submissions_survive(tmp_path: Path) -> None:
    folder = ReviewFolder(tmp_path / "review")
    assert folder.received() == []
    for number in (1, 2):
        folder.receive(stepping(number), f"experiment {number}", experimenter="ada")
    one, two = stepping(1).digest, stepping(2).digest
    assert folder.wait_for_decision(one, 0) is False
    approve(folder, stepping(1), "looked at it")
    approve(folder, stepping(2))
    folder.decide(two, False, "not any more")
    again = ReviewFolder(tmp_path / "review")
    assert again.wait_for_decision(one, 0)
    found = {each.digest: each for each in again.received()}
    assert [each.experiment for each in found.values()] == ["experiment 1", "experiment 2"]
    assert [each.experimenter for each in found.values()] == ["ada", "ada"]
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


def test_only_what_was_shown_can_be_approved(tmp_path: Path) -> None:
    folder = ReviewFolder(tmp_path)
    folder.receive(stepping(1), "new")
    digest = stepping(1).digest
    assert not folder.find(digest).shown
    with pytest.raises(FederationError, match=rf"^{digest} has not been shown yet.*\n.* show {digest[:12]} "):
        folder.decide(digest, True)
    assert folder.decision(digest) is None
    folder.decide(digest, False)  # what nobody wants to read can be rejected
    folder.note_shown(digest)
    assert folder.find(digest).shown
    folder.decide(digest, True)
    assert folder.decision(digest) is not None


def test_of_two_with_one_beginning_the_one_that_was_not_read_is_never_approved(tmp_path: Path) -> None:
    """Whoever submits tries until the digests of something harmless and of something else begin alike."""
    digits, found, number = 3, {}, 0
    while (submission := stepping(number)).digest[:digits] not in found:
        found[submission.digest[:digits]] = submission
        number += 1
    harmless, other = found[submission.digest[:digits]], submission
    prefix = harmless.digest[:digits]
    folder = ReviewFolder(tmp_path)
    folder.receive(harmless, "harmless")
    folder.note_shown(folder.find(prefix).digest)
    folder.receive(other, "harmless")
    with pytest.raises(FederationError, match="is the beginning of"):
        folder.find(prefix)
    folder.decide(harmless.digest, False)
    for path in tmp_path.glob(f"{harmless.digest}.*"):  # as if it had been forgotten
        path.unlink()
    with pytest.raises(FederationError, match="has not been shown yet"):
        folder.decide(folder.find(prefix).digest, True)


def test_the_folder_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ReviewFolder(tmp_path)
    monkeypatch.setattr(review, "MAX_KEPT", 4)
    for number in range(2):
        folder.receive(stepping(number), "approved")
        approve(folder, stepping(number))
    for number in range(2, 9):
        folder.receive(stepping(number), "ran", waits=False)
    kept = [each.digest for each in folder.received()]
    assert kept == [stepping(number).digest for number in (0, 1, 7, 8)]  # the oldest that nobody approved went first
    monkeypatch.setattr(review, "MAX_KEPT_BYTES", sum(path.stat().st_size for path in tmp_path.glob("*.zip")) // 2)
    folder.receive(stepping(9), "large", waits=False)
    assert [each.digest for each in folder.received()] == [stepping(1).digest, stepping(9).digest]
    assert folder.decision(stepping(0).digest) is not None  # an approval outlives the code that it was given to
    assert not list(tmp_path.glob("*.new"))


def test_what_waits_for_the_owner_is_never_pushed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ReviewFolder(tmp_path)
    monkeypatch.setattr(review, "MAX_KEPT", 5)
    folder.receive(stepping(0), "ran", waits=False)
    for number in range(1, 6):
        folder.receive(stepping(number), "waits")
    waiting = {stepping(number).digest for number in range(1, 6)}
    assert {each.digest for each in folder.received()} == waiting
    with pytest.raises(
        FederationError, match=r"5 submissions wait for this site's owner, and there is no room .* list"
    ):
        folder.receive(stepping(6), "flood")
    folder.receive(stepping(3), "again")  # what is there already takes no more room
    assert {each.digest for each in folder.received()} == waiting
    assert not list(tmp_path.glob("*.new"))
    assert not list(tmp_path.glob(f"{stepping(6).digest}*"))
    folder.decide(stepping(2).digest, False)
    folder.receive(stepping(6), "there is room now")
    assert {each.digest for each in folder.received()} == waiting - {stepping(2).digest} | {stepping(6).digest}


def test_one_experimenter_does_not_take_all_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ReviewFolder(tmp_path)
    monkeypatch.setattr(review, "MAX_WAITING_EACH", 3)
    for number in range(3):
        folder.receive(stepping(number), "flood", experimenter="mallory")
    with pytest.raises(FederationError, match="3 submissions of mallory wait for this site's owner already"):
        folder.receive(stepping(3), "flood", experimenter="mallory")
    folder.receive(stepping(4), "hers", experimenter="ada")
    approve(folder, stepping(0))
    folder.receive(stepping(3), "now", experimenter="mallory")
    assert len(folder.received()) == 5


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run a command of the owner's; its exit status, and what it says."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["review", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            review_command.main()
        return int(left.value.code or 0), "".join(capsys.readouterr())

    return run


def test_the_commands_explain_themselves(tmp_path: Path, command: Callable[..., tuple[int, str]]) -> None:
    config = tmp_path / "envoy.yaml"
    settings = {"name": "site", "shard_descriptor": {"template": "a.B"}, "review": {"accept": "approved"}}
    config.write_text(yaml.safe_dump(settings | {"audit": None}))
    hidden = Submission(
        FILES
        | {
            "toy/a.py": "x = 1 # \x1b[2K\nl\u0430st = 2\n".encode(),
            archives.DESCRIPTION: described(settings={"label": "gr\u00fcn", "size": [1, 2], "odd": "\u202e"}),
        }
    )
    folder = ReviewFolder(tmp_path / "review")
    folder.receive(hidden, "a\nname", experimenter="ada\x1b")
    folder.receive(stepping(1), "plain")
    for words, status, expected in (
        (("list",), 0, rf"(?m)^{hidden.digest[:12]}  .*  new  a\\nname +none; refused$"),
        (
            ("approve", hidden.digest),
            2,
            rf"review: {hidden.digest} has not been shown yet, .*show {hidden.digest[:12]}",
        ),
        (("approve", hidden.digest[:6]), 2, "has not been shown yet"),
        (("show", hidden.digest[:6]), 0, r"x = 1 # \\x1b\[2K"),
        (("show", hidden.digest), 0, r"submitted by ada\\x1b"),
        (("show", hidden.digest), 0, '"label": "gr\u00fcn",'),
        (("show", hidden.digest), 0, r'"odd": "\\u202e"'),
        (("show", hidden.digest), 0, r"\nWARNING     4 places with letters that may mislead"),
        (("show", hidden.digest), 0, r"\nexperiment.json:\d+: the direction of writing is turned: U\+202E"),
        (("show", hidden.digest), 0, r"\ntoy/a\.py:1: a control character: U\+001B"),
        (("show", hidden.digest), 0, r"\ntoy/a\.py:2: the name 'l\\u0430st' is not ASCII: CYRILLIC SMALL LETTER A"),
        (("list",), 0, rf"(?m)^{hidden.digest[:12]}  \S+ \S+ +a\\nname +none; refused$"),
        (("list",), 0, rf"(?m)^{stepping(1).digest[:12]}  .*  new  plain +none; refused$"),
        (("approve", hidden.digest[:6]), 0, rf"approved: {hidden.digest}"),
        (("list",), 0, rf"(?m)^{hidden.digest[:12]}  .* approved "),
        (("approve", "f" * 64), 2, "review: 'ffff"),
        (("reject", stepping(1).digest[:8]), 0, rf"rejected: {stepping(1).digest}"),
        (("audit",), 2, "no log is kept"),
    ):
        found, told = command(*words, "--config", config)
        assert (found, bool(re.search(expected, told, re.DOTALL))) == (status, True), (words, expected, told)
