"""Models over real gRPC, in one process; the server is stopped in the middle of a transfer and comes back."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rounds import SIZES, build, send

from federation.director.aggregator import RoundAggregator
from federation.director.state import Progress
from federation.errors import FederationError
from federation.schedule import TRAIN, VALIDATE_AGGREGATED, VALIDATE_LOCAL
from federation.settings import Certificates
from federation.wire import transfer
from federation.wire.channels import SERVER_OPTIONS, connect
from federation.wire.models import CHUNK, ModelFile, round_path, save
from federation.wire.transfer import Address, ModelServer, RoundOver, SiteTransfers, fetch_trained, keep_trying
from federation.wire.updates import Encoder

LARGE = {"a": np.arange(4 * CHUNK, dtype=np.float32), "b": np.ones(3, np.float32)}


class Slow(RoundAggregator):
    """An aggregator behind a slow line; counts the bytes that travel."""

    pause = 0.0
    travelled = 0

    def _slowly(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            time.sleep(self.pause)
            self.travelled += len(chunk)
            yield chunk

    def model_for(self, *arguments: int) -> Iterator[bytes]:
        return self._slowly(super().model_for(*arguments))

    def receive(self, address: Address, chunks: Iterator[bytes]) -> None:
        super().receive(address, self._slowly(chunks))


class Director:
    """A gRPC server with the models of one aggregator."""

    def __init__(self, folder: Path) -> None:
        self.aggregator = build(Slow, folder, rounds=2)
        save(round_path(folder, 0), LARGE)
        self.aggregator.open(folder, Progress())
        self.port = 0
        self.start()

    def start(self) -> None:
        self.server = grpc.server(ThreadPoolExecutor(8), options=SERVER_OPTIONS)
        trained = {"best": self.aggregator.model_file}
        ModelServer(
            lambda federation: self.aggregator if federation == "federation" else None,
            lambda experiment, kind, context: trained.get(kind),
            lambda context: None,
            lambda site: None,
        ).add_to(self.server)
        self.port = self.server.add_insecure_port(f"localhost:{self.port}")
        self.server.start()

    def restart_after(self, bytes_travelled: int) -> threading.Thread:
        def restart() -> None:
            while self.aggregator.travelled < bytes_travelled:
                time.sleep(0.01)
            self.server.stop(0).wait()
            time.sleep(0.3)
            self.aggregator.pause = 0.0
            self.start()

        thread = threading.Thread(target=restart)
        thread.start()
        return thread


@pytest.fixture
def director(tmp_path: Path) -> Iterator[Director]:
    (tmp_path / "director").mkdir()
    director = Director(tmp_path / "director")
    yield director
    director.server.stop(0).wait()


@pytest.fixture
def site(director: Director, tmp_path: Path) -> SiteTransfers:
    channel = connect(f"localhost:{director.port}", Certificates())
    return SiteTransfers(channel, "federation", "small", tmp_path)


def test_a_download_goes_on_where_it_was_cut(director: Director, site: SiteTransfers) -> None:
    director.aggregator.pause = 0.05
    restarted = director.restart_after(5 * CHUNK)
    model = site.model(0)
    restarted.join()
    np.testing.assert_array_equal(model["a"], LARGE["a"])
    assert director.aggregator.travelled < round_path(director.aggregator._folder, 0).stat().st_size + 6 * CHUNK
    assert site.model(0) is model


def test_an_upload_goes_on_where_it_was_cut(director: Director, site: SiteTransfers) -> None:
    trained = {name: array + 1 for name, array in LARGE.items()}
    packed = Encoder().encode(trained, site.model(0))
    director.aggregator.pause, director.aggregator.travelled = 0.05, 0
    restarted = director.restart_after(5 * CHUNK)
    site.send(0, packed)
    restarted.join()
    assert director.aggregator.travelled < packed.size + 6 * CHUNK
    (path,) = (director.aggregator._folder / "updates").iterdir()
    np.testing.assert_array_equal(ModelFile(path)["a"], trained["a"])


def test_a_tensor_that_stays_is_kept_at_the_site(director: Director, site: SiteTransfers, tmp_path: Path) -> None:
    model = site.model(0)
    packed = Encoder().encode({**LARGE, "b": LARGE["b"] + 1}, model)
    assert packed.size < 1000
    for name in SIZES:
        SiteTransfers(connect(f"localhost:{director.port}", Certificates()), "federation", name, tmp_path).send(
            0, packed
        )
        for task, tag in (
            (VALIDATE_AGGREGATED, "validate_agg"),
            (TRAIN, "trained"),
            (VALIDATE_LOCAL, "validate_local"),
        ):
            send(director.aggregator, name, task, 0, {"accuracy": 0.5}, tag)
    director.aggregator.travelled = 0
    second = site.model(1)
    assert director.aggregator.travelled < 1000
    np.testing.assert_array_equal(second["a"], LARGE["a"])
    np.testing.assert_array_equal(second["b"], LARGE["b"] + 1)
    with pytest.raises(RoundOver, match="round 1 is over"):
        site.send(0, packed)


def test_what_is_refused_is_not_tried_again(director: Director, site: SiteTransfers, tmp_path: Path) -> None:
    channel = connect(f"localhost:{director.port}", Certificates())
    with pytest.raises(FederationError, match="this director runs no such experiment"):
        SiteTransfers(channel, "another", "small", tmp_path).model(0)
    with pytest.raises(FederationError, match="site 'stranger' has no part in this experiment"):
        SiteTransfers(channel, "federation", "stranger", tmp_path).model(0)
    with pytest.raises(FederationError, match="tensor b holds values that are not finite"):
        site.send(0, Encoder().encode({**LARGE, "b": LARGE["b"] * np.nan}, site.model(0)))


def test_the_best_model_and_none(director: Director, tmp_path: Path) -> None:
    channel = connect(f"localhost:{director.port}", Certificates())
    best = fetch_trained(channel, "experiment", "best", tmp_path / "best.safetensors")
    assert best is not None
    np.testing.assert_array_equal(best["a"], LARGE["a"])
    assert fetch_trained(channel, "experiment", "last", tmp_path / "last.safetensors") is None


def test_a_director_that_stays_away_is_given_up(director: Director) -> None:
    director.server.stop(0).wait()
    channel = connect(f"localhost:{director.port}", Certificates())
    call = channel.unary_unary(f"/{transfer.SERVICE}/Received")
    started = time.monotonic()
    with pytest.raises(FederationError, match="the director answered: "):
        keep_trying(lambda: call(Address().to_bytes()), give_up_after=1.0)
    assert 1 <= time.monotonic() - started < 10


@given(
    st.binary()
    | st.dictionaries(st.sampled_from(["site", "round", "offset", "upload", "x"]), st.integers() | st.text())
)
def test_an_address_is_read_or_refused(content: object) -> None:
    message = content if isinstance(content, bytes) else transfer.json.dumps(content).encode()
    try:
        address = Address.from_bytes(message)
    except ValueError:
        return
    assert Address.from_bytes(address.to_bytes()) == address
    assert address.offset >= 0
    assert not set("/.\\") & set(address.upload)
