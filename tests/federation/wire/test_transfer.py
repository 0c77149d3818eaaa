"""Models over real gRPC, in one process; the server is stopped in the middle of a transfer and comes back."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rounds import SIZES, Conducted

from federation.director.models import ModelServer
from federation.director.results import Results
from federation.director.room import Room
from federation.errors import FederationError
from federation.schedule import TRAIN, VALIDATE_AGGREGATED, VALIDATE_LOCAL
from federation.settings import Certificates
from federation.wire import transfer
from federation.wire.channels import SERVER_OPTIONS, connect
from federation.wire.models import CHUNK, ModelFile, round_path
from federation.wire.transfer import Address, RoundOver, SiteTransfers, fetch_trained, keep_trying
from federation.wire.updates import Encoder

LARGE = {"a": np.arange(4 * CHUNK, dtype=np.float32), "b": np.ones(3, np.float32)}


class Slow(ModelServer):
    """The models' streams over a slow line; counts the bytes that travel."""

    pause = 0.0
    travelled = 0

    async def _slowly(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            await asyncio.sleep(self.pause)
            self.travelled += len(chunk)
            yield chunk

    async def round(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        async for chunk in self._slowly(super().round(request, context)):
            yield chunk

    async def update(self, messages: AsyncIterator[bytes], context: Any) -> bytes:
        return await super().update(self._slowly(messages), context)


class Director:
    """A gRPC server with the models of one experiment, in a thread."""

    def __init__(self, folder: Path) -> None:
        self.conducted = Conducted(folder, rounds=2, model=LARGE)
        self.conductor = self.conducted.conductor
        self.folder = self.conducted.state.folder
        self.port = 0
        trained = {"best": self.conducted.model("last")}
        self.loop = self.conducted.runner.get_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.models = Slow(
            lambda experiment: self.conductor if experiment == self.conductor.id else None,
            lambda experiment, kind, context: trained.get(kind),
            lambda context: None,
            self._in_thread,
            Room(),
        )
        self.do(self._start())

    async def _in_thread(self, work: Any, *arguments: Any) -> Any:
        return await self.loop.run_in_executor(None, work, *arguments)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    async def _start(self) -> None:
        self.server = grpc.aio.server(options=SERVER_OPTIONS)
        self.models.add_to(self.server)
        self.port = self.server.add_insecure_port(f"localhost:{self.port}")
        await self.server.start()

    def take(self, site: str) -> None:
        """All of a site's results, its update has come."""

        async def take() -> None:
            for task in (VALIDATE_AGGREGATED, TRAIN, VALIDATE_LOCAL):
                self.conductor.take(Results(site, self.conductor.round, task, 1, {"accuracy": 0.5}))
            await asyncio.sleep(0)
            await self.conductor.settled()

        self.do(take())

    def stop(self) -> None:
        self.do(self.server.stop(0))

    def restart_after(self, bytes_travelled: int) -> threading.Thread:
        def restart() -> None:
            while self.models.travelled < bytes_travelled:
                time.sleep(0.01)
            self.stop()
            time.sleep(0.3)
            self.models.pause = 0.0
            self.do(self._start())

        thread = threading.Thread(target=restart)
        thread.start()
        return thread

    def close(self) -> None:
        self.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)


@pytest.fixture
def director(tmp_path: Path) -> Iterator[Director]:
    (tmp_path / "director").mkdir()
    director = Director(tmp_path / "director")
    yield director
    director.close()


def site_of(director: Director, name: str, folder: Path, experiment: str | None = None) -> SiteTransfers:
    channel = connect(f"localhost:{director.port}", Certificates())
    return SiteTransfers(channel, experiment or director.conductor.id, name, folder)


@pytest.fixture
def site(director: Director, tmp_path: Path) -> SiteTransfers:
    return site_of(director, "small", tmp_path)


def test_a_download_goes_on_where_it_was_cut(director: Director, site: SiteTransfers) -> None:
    director.models.pause = 0.05
    restarted = director.restart_after(5 * CHUNK)
    model = site.model(0)
    restarted.join()
    np.testing.assert_array_equal(model["a"], LARGE["a"])
    assert director.models.travelled < round_path(director.folder, 0).stat().st_size + 6 * CHUNK
    assert site.model(0) is model
    assert site.received_bytes == pytest.approx(round_path(director.folder, 0).stat().st_size, abs=1000), "cut or not"


def test_an_upload_goes_on_where_it_was_cut(director: Director, site: SiteTransfers) -> None:
    trained = {name: array + 1 for name, array in LARGE.items()}
    packed = Encoder().encode(trained, site.model(0))
    director.models.pause, director.models.travelled = 0.05, 0
    restarted = director.restart_after(5 * CHUNK)
    site.send(0, packed)
    restarted.join()
    assert director.models.travelled < packed.size + 6 * CHUNK
    (path,) = (director.folder / "updates").rglob("*.safetensors")
    np.testing.assert_array_equal(ModelFile(path)["a"], trained["a"])


def test_a_tensor_that_stays_is_kept_at_the_site(director: Director, site: SiteTransfers, tmp_path: Path) -> None:
    model = site.model(0)
    packed = Encoder().encode({**LARGE, "b": LARGE["b"] + 1}, model)
    assert packed.size < 1000
    for name in SIZES:
        site_of(director, name, tmp_path).send(0, packed)
        director.take(name)
    director.models.travelled = 0
    second = site.model(1)
    assert director.models.travelled < 1000
    assert 0 < site.received_bytes < 1000
    np.testing.assert_array_equal(second["a"], LARGE["a"])
    np.testing.assert_array_equal(second["b"], LARGE["b"] + 1)
    with pytest.raises(RoundOver, match="round 1 is over"):
        site.send(0, packed)


def test_what_is_refused_is_not_tried_again(director: Director, site: SiteTransfers, tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="this director runs no such experiment"):
        site_of(director, "small", tmp_path, "another").model(0)
    with pytest.raises(FederationError, match="site 'stranger' has no part in this experiment"):
        site_of(director, "stranger", tmp_path).model(0)
    with pytest.raises(FederationError, match="tensor b holds values that are not finite"):
        site.send(0, Encoder().encode({**LARGE, "b": LARGE["b"] * np.nan}, site.model(0)))


def test_silent_uploads_hold_up_nobody(director: Director, site: SiteTransfers, tmp_path: Path) -> None:
    channel = connect(f"localhost:{director.port}", Certificates())
    over = threading.Event()

    def nothing_more(number: int) -> Iterator[bytes]:
        yield Address(director.conductor.id, "large", upload=f"u{number}", size=100).to_bytes()
        over.wait(20)

    calls = [channel.stream_unary(f"/{transfer.SERVICE}/Update").future(nothing_more(n)) for n in range(70)]
    started = time.monotonic()
    site.send(0, Encoder().encode({name: array + 1 for name, array in LARGE.items()}, site.model(0)))
    director.take("small")
    assert time.monotonic() - started < 10
    codes = Counter(call.exception(10).code().name for call in calls)
    over.set()
    assert codes == {"ABORTED": 69, "UNAVAILABLE": 1}  # replaced by a later one; silent for too long


def test_the_best_model_and_none(director: Director, tmp_path: Path) -> None:
    channel = connect(f"localhost:{director.port}", Certificates())
    best = fetch_trained(channel, "experiment", "best", tmp_path / "best.safetensors")
    assert best is not None
    np.testing.assert_array_equal(best["a"], LARGE["a"])
    assert fetch_trained(channel, "experiment", "last", tmp_path / "last.safetensors") is None


def test_a_director_that_stays_away_is_given_up(director: Director) -> None:
    director.stop()
    channel = connect(f"localhost:{director.port}", Certificates())
    call = channel.unary_unary(f"/{transfer.SERVICE}/Received")
    started = time.monotonic()
    with pytest.raises(FederationError, match="no word from the director for 1 s "):
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
