"""Real director and envoy processes over real gRPC, with a toy in place of speech: faults and their answers."""

import shutil
import time
from dataclasses import astuple
from pathlib import Path

import numpy as np
import psutil
import pytest
from processes import TOYS, ToyFederation

from federation.errors import ExperimentFailed, FederationError, SubmissionRefused
from federation.notebook.handle import ExperimentHandle, FederationHandle, Metric
from federation.policy import RoundPolicy


def submit(
    toys: ToyFederation,
    name: str,
    rounds: int = 3,
    package: Path = TOYS / "toy",
    policy: RoundPolicy | None = None,
    update_format: str = "float32",
    length: int = 4,
    **faults: float,
) -> ExperimentHandle:
    federation = FederationHandle("localhost", toys.port)
    federation.wait_for_sites(2, 30)
    return federation.submit(
        name,
        package=package,
        entry_point="toy.experiment:experiment",
        settings={"length": length, "faults": faults},
        rounds=rounds,
        best_metric="accuracy",
        keep_optimizer=True,
        policy=policy,
        update_format=update_format,
    )


def values(metrics: list[Metric], site: str, task: str, metric: str) -> dict[int, float]:
    return {m.round: m.value for m in metrics if (m.site, m.task, m.metric) == (site, task, metric)}


@pytest.mark.shared
def test_an_experiment_from_submission_to_models(toys: ToyFederation) -> None:
    experiment = submit(toys, "plain", rounds=3)
    metrics = list(experiment.metrics())
    # Sites 1 and 2 add 1 and 2, so the average grows by 1.5 a round: 0, 1.5, 3, 4.5.
    assert values(metrics, "aggregator", "validate_global", "loss") == {0: 100.0, 1: 101.5, 2: 103.0, 3: 104.5}
    assert values(metrics, "site2", "validate_local", "loss") == {1: 102.0, 2: 103.5, 3: 105.0}
    assert values(metrics, "site1", "train", "loss") == {1: 5.0, 2: 6.0, 3: 7.0}
    assert set(values(metrics, "site2", "train", "update_norm").values()) == {4.0}, "four elements, each by 2"
    for what, rounds in ((what, values(metrics, "site1", "train", what)) for what in ("bytes_up", "bytes_down")):
        assert all(4 * 4 < size < 1000 for size in rounds.values()), what
    assert all(0 <= seconds < 60 for seconds in values(metrics, "site1", "train", "seconds").values())
    # Best by accuracy (round 2), although every loss is larger than every accuracy; last is round 3.
    np.testing.assert_allclose(experiment.best_weights()["vector"], 3.0)
    np.testing.assert_allclose(experiment.last_weights()["vector"], 4.5)
    in_fewer_bits = submit(toys, "int8", update_format="int8")
    assert len(list(in_fewer_bits.metrics())) == len(metrics)
    np.testing.assert_allclose(in_fewer_bits.last_weights()["vector"], 4.5, rtol=1e-2)


@pytest.mark.shared
def test_every_reader_gets_every_metric(toys: ToyFederation) -> None:
    experiment = submit(toys, "twice")
    first = list(experiment.metrics())
    assert list(experiment.metrics()) == first


@pytest.mark.shared
def test_nothing_waits_on_a_clock(toys: ToyFederation) -> None:
    experiment = submit(toys, "quick", rounds=10)
    times = [(metric.round, time.monotonic()) for metric in experiment.metrics() if metric.task == "train"]
    between = times[-1][1] - next(moment for round_number, moment in times if round_number == 2)
    assert between / 9 < 1.0, f"{between / 9:.2f} s a round; the engine as it comes needs over 12 s"


@pytest.mark.shared
def test_a_failing_task_reaches_the_notebook_and_the_next_experiment_runs(toys: ToyFederation) -> None:
    experiment = submit(toys, "broken", raise_on=2.0, in_round=1)
    started = time.monotonic()
    with pytest.raises(ExperimentFailed) as failure:
        list(experiment.metrics())
    assert time.monotonic() - started < 30
    said = str(failure.value)
    assert "site site2, round 2, task train: ArithmeticError: the toy was told to fail\n  at toy/experiment.py:" in said
    assert "in misbehave" in said
    assert "Traceback" not in said  # that is in the site's own log
    assert "Traceback" in toys.log("site2")
    assert len(list(submit(toys, "mended", rounds=1).metrics())) > 0


@pytest.mark.shared
def test_a_trainer_that_dies_is_one_failed_attempt(toys: ToyFederation) -> None:
    experiment = submit(toys, "killed", die_on=1.0)
    with pytest.raises(ExperimentFailed, match=r"site1 failed:\s.*SIGKILL\): killed for memory\?"):
        list(experiment.metrics())
    experiment = submit(toys, "crashed", crash_on=2.0, policy=RoundPolicy(retries=1))
    with pytest.raises(ExperimentFailed, match=r"site2 failed:\s.*SIGSEGV"):
        list(experiment.metrics())
    assert toys.log("site2").count("SIGSEGV); it is started once more") == 1
    assert toys.log("director").count("crashed: site site2 tries again: the trainer process was ended by signal") == 1
    # Started again it rejoins its round; the other site does its part once.
    experiment = submit(toys, "died once", rounds=2, die_once_on=1.0, in_round=1, policy=RoundPolicy(retries=1))
    metrics = list(experiment.metrics())
    assert took_part(metrics) == {"site1": {1: 1.0, 2: 1.0}, "site2": {1: 1.0, 2: 1.0}}
    np.testing.assert_allclose(experiment.last_weights()["vector"], 3.0)
    assert "SIGKILL): killed for memory?" in toys.log("site1")


@pytest.mark.shared
def test_a_second_experiment_runs_its_own_code(toys: ToyFederation, tmp_path: Path) -> None:
    assert submit_and_finish(toys, "old code") == pytest.approx(1.5)
    changed = tmp_path / "changed" / "toy"
    shutil.copytree(TOYS / "toy", changed)
    source = changed / "experiment.py"
    source.write_text(source.read_text().replace("STEP = 1.0", "STEP = 10.0"))
    assert submit_and_finish(toys, "new code", package=changed) == pytest.approx(15.0)


def submit_and_finish(toys: ToyFederation, name: str, package: Path = TOYS / "toy") -> float:
    experiment = submit(toys, name, rounds=1, package=package)
    list(experiment.metrics())
    return float(experiment.last_weights()["vector"][0])


def test_a_killed_envoy_rejoins_its_round_and_leaves_no_trainer(toys: ToyFederation) -> None:
    experiment = submit(toys, "rejoin", rounds=2, sleep_on=1.0, in_round=0, seconds=6)
    toys.wait_for("site1", "round 1, task train: starts")
    trainers = psutil.Process(toys.running["site1"].pid).children(recursive=True)
    assert trainers
    toys.kill("site1")
    gone, alive = psutil.wait_procs(trainers, timeout=5)
    assert len(gone) == len(trainers)
    assert not alive
    toys.start_site("site1", 1.0)
    list(experiment.metrics())
    np.testing.assert_allclose(experiment.last_weights()["vector"], 3.0)


def took_part(metrics: list[Metric]) -> dict[str, dict[int, float]]:
    return {site: values(metrics, site, "round", "took_part") for site in ("site1", "site2")}


@pytest.mark.shared
def test_values_that_are_not_numbers_are_refused(toys: ToyFederation) -> None:
    with pytest.raises(
        ExperimentFailed, match=r"(?s)site2, round 1, task train.*tensor vector holds values that are not"
    ):
        list(submit(toys, "all or nothing", nan_on=2.0).metrics())
    experiment = submit(toys, "without site2", nan_on=2.0, policy=RoundPolicy(minimum_sites=1))
    metrics = list(experiment.metrics())
    np.testing.assert_allclose(experiment.last_weights()["vector"], 3.0)  # site 1 alone, three rounds
    assert took_part(metrics) == {"site1": dict.fromkeys((1, 2, 3), 1.0), "site2": dict.fromkeys((1, 2, 3), 0.0)}


def test_an_envoy_that_stays_away_is_left_out_by_policy(toys: ToyFederation) -> None:
    policy = RoundPolicy(minimum_sites=1, gone_seconds=3)
    experiment = submit(toys, "one gone", policy=policy, sleep_on=2.0, in_round=1, seconds=60)
    toys.wait_for("site2", "round 2, task train: starts")
    toys.kill("site2")
    metrics = list(experiment.metrics())
    assert took_part(metrics) == {"site1": dict.fromkeys((1, 2, 3), 1.0), "site2": {1: 1.0, 2: 0.0, 3: 0.0}}
    np.testing.assert_allclose(experiment.last_weights()["vector"], 3.5)  # 1.5, then site 1 alone
    # All are needed: the experiment ends with a message, and the next one runs.
    toys.start_site("site2", 2.0)
    experiment = submit(toys, "all needed", policy=RoundPolicy(gone_seconds=3), sleep_on=2.0, in_round=0, seconds=60)
    toys.wait_for("site2", "round 1, task train: starts")
    toys.kill("site2")
    with pytest.raises(ExperimentFailed, match=r"site site2 is gone: the director has not heard of it for [345] s"):
        list(experiment.metrics())
    toys.start_site("site2", 2.0)
    assert submit_and_finish(toys, "next") == pytest.approx(1.5)


@pytest.mark.shared
def test_a_slow_site_is_left_out_of_its_round_and_is_back_in_the_next(toys: ToyFederation) -> None:
    policy = RoundPolicy(minimum_sites=1, round_seconds=2)
    experiment = submit(toys, "slow", rounds=4, policy=policy, sleep_on=2.0, in_round=1, seconds=5)
    metrics = list(experiment.metrics())
    assert took_part(metrics)["site1"] == dict.fromkeys((1, 2, 3, 4), 1.0)
    slow = took_part(metrics)["site2"]
    assert (slow[1], slow[2]) == (1.0, 0.0)
    strict = submit(toys, "too slow", policy=RoundPolicy(round_seconds=2), sleep_on=2.0, in_round=0, seconds=6)
    with pytest.raises(ExperimentFailed, match="after 2 s only 1 of at least 2 sites were done; missing: site2"):
        list(strict.metrics())
    assert submit_and_finish(toys, "next") == pytest.approx(1.5)


def test_experiments_queue_and_can_be_cancelled(toys: ToyFederation) -> None:
    running = submit(toys, "running", sleep_on=1.0, in_round=0, seconds=60)
    toys.wait_for("site1", "round 1, task train: starts")
    waiting, last = submit(toys, "waiting"), submit(toys, "last", rounds=1)
    assert [each.status() for each in (running, waiting, last)] == [
        "in_progress", "pending, 1 before it", "pending, 2 before it",
    ]  # fmt: skip
    waiting.cancel()
    with pytest.raises(ExperimentFailed, match="waiting was cancelled by experimenter"):
        list(waiting.metrics())
    trainer = psutil.Process(toys.running["site1"].pid).children()[0]
    running.cancel()
    with pytest.raises(ExperimentFailed, match="running was cancelled by experimenter"):
        list(running.metrics())
    trainer.wait(5)  # it was in the middle of a task of 60 s
    toys.wait_for("site1", "running: is over for this site; its trainer was ended", 5)
    # Another notebook takes over by name and misses nothing.
    metrics = list(FederationHandle("localhost", toys.port).attach("last").metrics())
    assert values(metrics, "aggregator", "validate_global", "loss") == {0: 100.0, 1: 101.5}
    assert last.status() == "finished"
    assert FederationHandle("localhost", toys.port).attach("never").status() == "unknown"


def test_envoys_return_to_a_restarted_director(toys: ToyFederation) -> None:
    toys.kill("director")
    toys.start_director(toys.port)
    assert submit_and_finish(toys, "new life") == pytest.approx(1.5)


@pytest.mark.parametrize("ending", ["killed", "stopped"])
def test_an_experiment_goes_on_after_its_director(
    toys: ToyFederation, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = submit(toys, "to be continued", rounds=4, sleep_on=1.0, in_round=2, seconds=3)
    reader, seen = experiment.metrics(), []
    for metric in reader:
        seen.append(metric)
        if (metric.site, metric.task, metric.round) == ("site2", "validate_local", 3):
            break  # site 2 has finished the third round, site 1 sleeps in it
    if ending == "killed":
        toys.kill("director")
    else:
        toys.running["director"].terminate()
        assert toys.wait("director", 15) == 0
    toys.start_director(toys.port)
    assert "goes on with round 2" in toys.log("director")
    again = FederationHandle("localhost", toys.port).attach("to be continued")
    metrics = list(again.metrics())
    # Every metric from the first, none twice, and the weights of an undisturbed run.
    assert values(metrics, "aggregator", "validate_global", "loss") == {
        0: 100.0,
        1: 101.5,
        2: 103.0,
        3: 104.5,
        4: 106.0,
    }
    assert len({(m.round, m.site, m.task, m.metric) for m in metrics}) == len(metrics)
    # The first notebook has waited for the director, said so once, and got the rest: nothing missing, nothing twice.
    seen += reader
    assert sorted(map(astuple, seen)) == sorted(map(astuple, metrics))
    assert caplog.text.count("experiment to be continued: the director is out of reach") == 1
    assert set(values(metrics, "site1", "train", "loss")) == {1, 2, 3, 4}
    np.testing.assert_allclose(again.last_weights()["vector"], 6.0)
    np.testing.assert_allclose(again.best_weights()["vector"], 3.0)
    # Each site trained each round once: the trainers lived on and sent again what was lost.
    assert all(toys.log(site).count("round 3, task train: starts") <= 2 for site in ("site1", "site2"))
    assert "to be continued: failed" not in toys.log("site1") + toys.log("site2")
    assert "Traceback" not in toys.log("director")
    # What is over can be had after another restart, and its name stays taken.
    toys.kill("director")
    toys.start_director(toys.port)
    kept = FederationHandle("localhost", toys.port).attach("to be continued")
    assert kept.status() == "finished"
    assert list(kept.metrics()) == metrics
    np.testing.assert_allclose(kept.best_weights()["vector"], 3.0)


def test_no_director(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"no director answers at localhost:1 .*start_director\.sh"):
        FederationHandle("localhost", 1)


def test_refusals(tmp_path: Path) -> None:
    toys = ToyFederation(tmp_path, sites=0)
    try:
        federation = FederationHandle("localhost", toys.port)
        with pytest.raises(FederationError, match="0 of 2 sites are online"):
            federation.wait_for_sites(2, 0.5)
        with pytest.raises(SubmissionRefused, match="no envoy is online"):
            federation.submit(
                "early", package=TOYS / "toy", entry_point="toy.experiment:experiment", settings={}, rounds=1,
                best_metric="accuracy",
            )  # fmt: skip
        toys.start_site("odd", 1.0, shape="5")
        assert toys.wait("odd") == 1
        assert "director.yaml names those" in toys.log("odd")
        assert "Traceback" not in toys.log("odd")
        toys.start_site("site1", 1.0)
        toys.start_site("site2", 2.0)
        federation.wait_for_sites(2, 30)
        list(submit(toys, "name", rounds=1).metrics())
        with pytest.raises(SubmissionRefused, match="already an experiment named name"):
            submit(toys, "name", rounds=1)
        with pytest.raises(SubmissionRefused, match="minimum_sites is 3, and a round asks only 2 sites"):
            submit(toys, "crowd", policy=RoundPolicy(minimum_sites=3))
        # A second director on the same port says so and leaves.
        toys.start("second", *toys.running["director"].args[:-1], str(toys.port), env=toys.env)  # type: ignore[misc]
        assert toys.wait("second") == 1
        assert "another director" in toys.log("second")
        assert "Traceback" not in toys.log("second")
    finally:
        toys.stop()


def test_a_director_and_its_envoys_stop_cleanly(toys: ToyFederation) -> None:
    experiment = submit(toys, "stopped", sleep_on=1.0, in_round=0, seconds=60)
    toys.wait_for("site1", "round 1, task train: starts")
    metrics = experiment.metrics(reconnect_seconds=1)
    next(metrics)  # a reader is connected
    started = time.monotonic()
    toys.stop()
    assert time.monotonic() - started < 10
    assert {name: process.returncode for name, process in toys.running.items()} == dict.fromkeys(toys.running, 0)
    assert not any("Traceback" in toys.log(name) for name in toys.running)
    assert list((toys.logs / "tmp").iterdir()) == []
    # What a reader is told first depends on who is faster, the director's last word or the end of the connection.
    told = r"no word from the director for 1 s in the middle of stopped \(.+\); .*attach\('stopped'\)"
    started = time.monotonic()
    with pytest.raises(ExperimentFailed, match=told):
        list(metrics)
    assert 1 <= time.monotonic() - started < 10  # it has waited for the director to be back, and no longer
