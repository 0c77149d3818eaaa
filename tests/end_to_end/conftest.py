"""The toy federation, and the toy package importable as the sites import it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Processes, ToyFederation


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts real processes, and run it last: fast tests first."""
    items.sort(key=_is_end_to_end)
    for item in filter(_is_end_to_end, items):
        item.add_marker(pytest.mark.end_to_end)


def _is_end_to_end(item: pytest.Item) -> bool:
    return "end_to_end" in item.path.parts


@pytest.fixture
def toys(tmp_path: Path) -> Iterator[ToyFederation]:
    """A running director with two toy sites."""
    federation = ToyFederation(tmp_path)
    yield federation
    federation.stop()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Processes of one test."""
    started = Processes(tmp_path)
    yield started
    started.stop()
