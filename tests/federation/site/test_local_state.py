import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from federation.site.local_state import LocalState, own_folder, state_folder
from federation.wire.names import site_name_problem


def save(state: LocalState, *rounds: int) -> None:
    for number in rounds:
        state.save(number, lambda path, number=number: path.write_text(f"after {number}"))


def test_the_state_of_the_last_three_rounds_is_kept(tmp_path: Path) -> None:
    state = LocalState(tmp_path)
    assert state.before(5) is None
    save(state, 7, 8, 9, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10.state", "8.state", "9.state"]
    assert state.before(8) is None
    assert [state.before(number).read_text() for number in (9, 11, 30)] == ["after 8", "after 10", "after 10"]


def test_a_round_that_is_trained_again_forgets_what_came_after(tmp_path: Path) -> None:
    state = LocalState(tmp_path)
    save(state, 3, 4)
    save(state, 3)
    assert state.before(9).read_text() == "after 3"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_state_is_whole_or_not_there(tmp_path: Path) -> None:
    state = LocalState(tmp_path)
    save(state, 1)

    def half(path: Path) -> None:
        path.write_text("ha")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        state.save(2, half)
    assert [path.name for path in tmp_path.iterdir()] == ["1.state"]


def test_a_site_keeps_the_state_of_as_many_experiments_as_it_has_slots(tmp_path: Path) -> None:
    first, other_site = state_folder(tmp_path, "a", "one"), state_folder(tmp_path, "b", "one")
    save(LocalState(first), 0)
    assert state_folder(tmp_path, "a", "one") == first
    assert LocalState(first).before(1) is not None
    os.utime(first, (0, 0))
    second = state_folder(tmp_path, "a", "two", slots=2)
    assert {*(tmp_path / "a").iterdir()} == {first, second}
    third = state_folder(tmp_path, "a", "three", slots=2)
    assert {*(tmp_path / "a").iterdir()} == {second, third}  # the first was touched longest ago
    assert [*state_folder(tmp_path, "a", "three").parent.iterdir()] == [third]
    assert other_site.is_dir()


def test_own_tensors_of_the_last_three_rounds_and_of_the_best_stay_when_the_state_goes(tmp_path: Path) -> None:
    folder = state_folder(tmp_path, "north", "0123456789" * 3)
    own = own_folder(folder, "my run/1")
    state = LocalState(folder, own)
    for rounds, best in enumerate([None, 0, 1, 2, 2, 2, 2], 1):
        state.keep_own(rounds, {"head": np.full(2, rounds, np.float32)}, best)
    shutil.rmtree(folder)
    state_folder(tmp_path, "north", "another")
    kept = {path.name: float(load_file(path)["head"][0]) for path in own.iterdir()}
    assert kept == {f"round-{rounds}.safetensors": rounds for rounds in (2, 5, 6, 7)}
    state.keep_own(5, {"head": np.zeros(2, np.float32)}, 2)  # the director has gone back two rounds
    assert {path.stem for path in own.iterdir()} == {"round-2", "round-5"}
    assert site_name_problem(own.relative_to(tmp_path).parts[0])  # no site's state can lie there


def test_a_site_that_is_not_asked_in_every_round_keeps_what_the_best_model_was_measured_with(tmp_path: Path) -> None:
    state = LocalState(tmp_path / "state", tmp_path / "own")
    for rounds, best in ((2, None), (5, 4), (9, 4), (12, 4), (14, 4), (20, 4)):
        state.keep_own(rounds, {"head": np.zeros(2, np.float32)}, best)
    assert {path.stem for path in (tmp_path / "own").iterdir()} == {"round-2", "round-12", "round-14", "round-20"}


def test_a_site_without_own_tensors_has_no_folder_for_them(tmp_path: Path) -> None:
    folder = state_folder(tmp_path, "north", "one")
    LocalState(folder, own_folder(folder, "run")).keep_own(1, {}, None)
    LocalState(folder).keep_own(1, {"head": np.zeros(1, np.float32)}, None)
    assert [path.name for path in tmp_path.iterdir()] == ["north"]
