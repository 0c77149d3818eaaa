"""Two hundred sites of one director: nobody is missing, and nobody's call waits because others do."""

from pathlib import Path

import pytest
from many import cost


@pytest.mark.slow
def test_two_hundred_sites(tmp_path: Path) -> None:
    measured = cost(tmp_path, sites=200)  # which asserts that every site took part in every round
    assert measured.weights == [4.0] * 4
    assert max(measured.rounds) < 30
    assert measured.milliseconds < 15, "5 ms on a quiet machine"
    assert measured.memory < 600e6
