"""The toy federation, and the toy package importable as the sites import it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Processes, ToyFederation


def pytest_configure(config: pytest.Config) -> None:
    """Tell of the marks that are only used here."""
    config.addinivalue_line("markers", "shared: stops no process; names its experiments as no other test of the file")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts real processes, and run it last: fast tests first."""
    items.sort(key=_is_end_to_end)
    for item in filter(_is_end_to_end, items):
        item.add_marker(pytest.mark.end_to_end)


def _is_end_to_end(item: pytest.Item) -> bool:
    return "end_to_end" in item.path.parts


@pytest.fixture(scope="module")
def shared_toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyFederation]:
    """A running director with two toy sites, for all tests of a file that are marked as `shared`."""
    federation = ToyFederation(tmp_path_factory.mktemp("shared"))
    yield federation
    federation.stop()


@pytest.fixture
def toys(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ToyFederation]:
    """A running director with two toy sites; a test that stops none of them, and is marked so, shares it."""
    if request.node.get_closest_marker("shared"):
        federation: ToyFederation = request.getfixturevalue("shared_toys")
        yield federation
        ended = {name: process.returncode for name, process in federation.running.items() if process.poll() is not None}
        assert not ended, "a test that shares the federation has ended processes of it"
        return
    federation = ToyFederation(tmp_path)
    yield federation
    federation.stop()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Processes of one test."""
    started = Processes(tmp_path)
    yield started
    started.stop()
