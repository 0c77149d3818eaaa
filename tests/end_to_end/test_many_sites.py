"""Hundreds of sites of one director: nobody is missing, and nobody's call waits because others do."""

from pathlib import Path

import pytest
from many import cost


def test_two_hundred_sites(tmp_path: Path) -> None:
    measured = cost(tmp_path, sites=200)  # which asserts that every site took part in every round
    assert measured.weights == [4.0] * 4
    assert max(measured.rounds) < 30
    assert measured.milliseconds < 15, "5 ms on a quiet machine"
    assert measured.memory < 600e6
    assert max(measured.longest[kind] for kind in ("register", "status", "results")) < 5, "1 s on a quiet machine"


@pytest.mark.slow
def test_a_thousand_sites(tmp_path: Path) -> None:
    measured = cost(tmp_path, sites=1000, rounds=3, length=125_000)
    assert measured.weights[0] == 3.0
    assert max(measured.rounds) < 60, "30 s on a quiet machine"
    assert measured.milliseconds < 15, "5 ms on a quiet machine"
    assert measured.memory < 700e6, "600 MB on a quiet machine"
