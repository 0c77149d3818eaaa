"""What a notebook is told when a call of its handle does not come to what was asked: words, whatever the call."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from processes import TOYS
from served import Running, our_server

from federation import authority as certificates
from federation.authority import Role
from federation.errors import FederationError, SubmissionRefused
from federation.notebook import handle
from federation.notebook.handle import ExperimentHandle, FederationHandle
from federation.settings import certificates_beside

Call = Callable[[FederationHandle, ExperimentHandle], object]


def submit(federation: FederationHandle, _: ExperimentHandle, **more: Any) -> object:
    return federation.submit(
        "new", package=TOYS / "toy", entry_point="toy.experiment:experiment", settings={}, rounds=1,
        best_metric="accuracy", **more,
    )  # fmt: skip


CALLS: dict[str, Call] = {
    "sites": lambda federation, _: federation.sites(),
    "wait_for_sites": lambda federation, _: federation.wait_for_sites(1, 0.1),
    "submit": submit,
    "status": lambda _, experiment: experiment.status(),
    "metrics": lambda _, experiment: list(experiment.metrics(reconnect_seconds=0.1)),
    "best_weights": lambda _, experiment: experiment.best_weights(),
    "last_weights": lambda _, experiment: experiment.last_weights(),
    "cancel": lambda _, experiment: experiment.cancel(),
    "remove": lambda _, experiment: experiment.remove(),
}


def test_every_call_of_a_handle_is_here() -> None:
    public = {name for kind in (FederationHandle, ExperimentHandle) for name in vars(kind) if not name.startswith("_")}
    assert public - {"attach"} == set(CALLS)  # which asks nobody


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates for a director and two experimenters."""
    folder = tmp_path_factory.mktemp("authority") / "authority"
    certificates.init(folder)
    certificates.issue(folder, Role.DIRECTOR, "director", ["localhost"])
    for name in ("ada", "eve"):
        certificates.issue(folder, Role.EXPERIMENTER, name)
    return folder


@pytest.fixture(scope="module")
def director(authority: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A director with no sites."""
    secure = {"tls": True, **certificates_beside(authority / "director.crt").as_strings()}
    running = Running(partial(our_server, tmp_path_factory.mktemp("director")), **secure)
    yield running
    running.close()


def connected(director: Running, authority: Path, name: str) -> FederationHandle:
    return FederationHandle("localhost", director.port, certificates_beside(authority / f"{name}.crt"))


@pytest.mark.parametrize("call", sorted(CALLS.keys() - {"sites", "wait_for_sites", "submit", "status"}))
def test_a_name_that_the_director_does_not_know(call: str, director: Running, authority: Path) -> None:
    federation = connected(director, authority, "ada")
    with pytest.raises(FederationError, match="knows no experiment nobody's of ada, but none; attach to one of those"):
        CALLS[call](federation, federation.attach("nobody's"))


def test_the_status_of_what_the_director_does_not_know(director: Running, authority: Path) -> None:
    assert connected(director, authority, "ada").attach("nobody's").status() == "unknown"


def test_no_site_is_there(director: Running, authority: Path) -> None:
    federation = connected(director, authority, "ada")
    assert federation.sites() == []
    with pytest.raises(FederationError, match="no envoy is online; start one"):
        submit(federation, federation.attach("new"))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"name": "mine"}, "rule.name is 'mine'; allowed: mean, fedavgm, .*median"),
        ({"name": "toy.experiment:rule"}, "rule.name is .*allowed: up to 50 letters"),
        ({"name": "median", "made_up": 1.0}, "rule.made_up is no number of this rule; allowed: max_update_norm"),
    ],
)
def test_a_rule_that_the_director_has_not_got(
    rule: dict[str, Any], words: str, director: Running, authority: Path
) -> None:
    """Nor one that lies in the package: what is shipped runs at sites only."""
    federation = connected(director, authority, "ada")
    with pytest.raises(SubmissionRefused, match=words):
        submit(federation, federation.attach("new"), rule=rule)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sites": "envoy"}, "sites is 'envoy'; give a list of names"),
        ({"sites": 5}, "sites is 5; give a list of names"),
        ({"sites": [1, "envoy"]}, "sites is .1, 'envoy'.; give a list of names"),
        ({"sampling": 2}, "sampling is 2; give Sampling"),
        ({"sampling": {"sites": 2}}, "sampling is {'sites': 2}; give Sampling"),
        ({"policy": {"minimum_sites": 1}}, "policy is {'minimum_sites': 1}; give RoundPolicy"),
        ({"rule": "fedadam"}, "rule is 'fedadam'; give a mapping with its name"),
        ({"scores": {"accuracy": "ratio"}}, "scores is {'accuracy': 'ratio'}; give a mapping of names to Score"),
        ({"scores": ["accuracy"]}, r"scores is \['accuracy'\]; give"),
        ({"sites": "a", "sampling": 1, "rule": 3}, "(?s)sites is .*\nsampling is .*\nrule is "),
    ],
)
def test_what_is_of_another_kind_than_asked(
    given: dict[str, Any], words: str, director: Running, authority: Path
) -> None:
    federation = connected(director, authority, "ada")
    with pytest.raises(SubmissionRefused, match=words):
        submit(federation, federation.attach("new"), **given)


def test_a_name_and_a_package_of_another_kind(director: Running, authority: Path) -> None:
    federation = connected(director, authority, "ada")
    with pytest.raises(
        SubmissionRefused, match=r"^name is 5; give a text\npackage is 'toy'; give its folder.*\nrule is 3"
    ):
        federation.submit(
            5, package="toy", entry_point="toy.experiment:experiment", settings={}, rounds=1, best_metric="accuracy",
            rule=3,
        )  # type: ignore[arg-type]  # fmt: skip


@pytest.fixture(scope="module")
def revoked(director: Running, authority: Path) -> FederationHandle:
    """The handle of one who was let in, and is not any more."""
    federation = connected(director, authority, "eve")
    certificates.revoke(authority, "eve")
    return federation


@pytest.mark.parametrize("call", sorted(CALLS))
def test_a_certificate_that_was_revoked_meanwhile(call: str, revoked: FederationHandle) -> None:
    federation = revoked
    with pytest.raises(FederationError, match=r"was revoked; ask for a new one"):
        CALLS[call](federation, federation.attach("mine"))


@pytest.mark.parametrize("call", sorted(CALLS))
def test_a_director_that_is_away(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle, "READ_SECONDS", 0.1)
    monkeypatch.setattr(handle, "fetch_trained", partial(handle.fetch_trained, give_up_after=0.1))
    running = Running(partial(our_server, tmp_path))
    federation = FederationHandle("localhost", running.port)
    running.close()
    with pytest.raises(FederationError, match=r"no word from (it|the director).*when it is back"):
        CALLS[call](federation, federation.attach("mine"))
