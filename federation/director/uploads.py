"""What the sites send in a round, from the first byte to a checked file that nobody changes any more.

A site sends one update at a time: what it sends later takes the place of what it sent before, as a whole, and only
until its training counts (`Uploads.freeze`). Parts lie beside checked updates under names of their own, so that a part
of another update, or more bytes of the same one, cannot change what was checked.

So many bytes are under way at a time (`federation.director.room`), from an upload's turn until its training counts;
the other sites wait for their turn before they send anything. One that says nothing for some seconds lets another go
first, and one that says nothing for a minute is ended; what has arrived of it stays until the round is over, so that it
can go on.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from federation.director.room import Place, Room
from federation.wire.models import ModelFile
from federation.wire.transfer import Address
from federation.wire.updates import Update

IDLE_SECONDS = 60.0
QUIET_SECONDS = 5.0
HEADER_BYTES = 2**20
"""How much larger than the model an update may be."""

_END = b""

Run = Callable[..., Awaitable[Any]]
"""Calls a function in a thread, where it may wait for the disk."""


class Replaced(Exception):
    """The same site has begun to send something else."""


class Silent(Exception):
    """Nothing has come for too long."""


class Cut(Exception):
    """A call has ended before the update did, as when its connection is lost; the rest may come in another one."""


@dataclass
class _Part:
    """An update that is arriving."""

    upload: str
    path: Path
    arrived: int = 0


class Uploads:
    """The updates of one round of one experiment; for one event loop.

    Args:
        folder: where they are kept; of this round alone.
        model: what the sites have received.
        run: calls a function in a thread, where it may wait for the disk.
        room: for what goes on at a time, whosever it is.
    """

    def __init__(
        self,
        folder: Path,
        model: ModelFile,
        run: Run,
        room: Room,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._folder, self._model, self._run, self._room, self._idle = folder, model, run, room, idle_seconds
        self._largest = model.path.stat().st_size + HEADER_BYTES
        self._parts: dict[str, _Part] = {}
        self._whole: dict[str, tuple[str, Update]] = {}
        self._frozen: set[str] = set()
        self._held: dict[str, _Upload] = {}
        self._running: dict[str, asyncio.Future[None]] = {}
        self._files: dict[str, asyncio.Lock] = {}

    def received(self, address: Address) -> int:
        """How many bytes of an update have arrived."""
        if self._is_here(address):
            return address.size
        part = self._parts.get(address.site)
        return part.arrived if part and part.upload == address.upload else 0

    def has(self, site: str) -> bool:
        """Whether an update of a site has come as a whole; it was checked."""
        return site in self._whole

    def freeze(self, site: str) -> tuple[Update, Callable[[], None]]:
        """What a site has sent, for its training counts now: nothing takes its place any more.

        Also what has to be called when it is no longer under way, so that others may come.
        """
        self._frozen.add(site)
        if running := self._running.get(site):
            _wake(running)
        held = self._held.pop(site, None)
        return self._whole.pop(site)[1], held.leave if held else lambda: None

    async def receive(
        self,
        address: Address,
        messages: AsyncIterator[bytes],
        check: Callable[[], None],
        begin: Callable[[], Awaitable[None]],
    ) -> None:
        """Keep an update, which may come in several parts, and check it when it is whole.

        check: called after everything that takes time; raises when the update is no longer wanted. begin: tells the
        site that it is its turn.

        Raises:
            ValueError: it is not an update of this model; says which tensor.
            Replaced: the same site has begun to send another one meanwhile.
            Silent: nothing has come for too long.
            Cut: no more comes by this call.
            OSError: it cannot be kept.
        """
        if self._is_here(address):
            return
        if not 0 < address.size <= self._largest:
            raise ValueError(f"the update has {address.size} bytes; this model's have at most {self._largest}")
        if before := self._running.get(address.site):
            _wake(before)
        replaced = self._running[address.site] = asyncio.get_running_loop().create_future()
        try:
            async with self._files.setdefault(address.site, asyncio.Lock()):  # the one before has let go of the file
                check()
                if self._is_here(address):
                    return
                if replaced.done():
                    raise Replaced(f"site {address.site} has begun to send something else")
                if held := self._held.pop(address.site, None):
                    held.leave()  # a site that sends once more has no second place
                upload = _Upload(self._room, address, replaced, self._idle)
                try:
                    async with aclosing(upload.chunks(messages, begin)) as chunks:
                        await self._receive(address, chunks, check)
                except BaseException:
                    upload.leave()
                    raise
                self._hold(address.site, upload)
        finally:
            if self._running.get(address.site) is replaced:
                del self._running[address.site]

    def _is_here(self, address: Address) -> bool:
        whole = self._whole.get(address.site)
        return address.site in self._frozen or (whole is not None and whole[0] == address.upload)

    async def _receive(self, address: Address, chunks: AsyncIterator[bytes], check: Callable[[], None]) -> None:
        site, at = address.site, address.offset
        part = self._parts.get(site)
        if part is None or part.upload != address.upload:
            if part:
                await self._run(_remove, part.path)
            name = f"{quote(site, safe='')}-{address.upload}"
            part = self._parts[site] = _Part(address.upload, self._folder / f"{name}.part")
        if at > part.arrived:
            raise ValueError(f"offset {at} lies behind what has arrived")
        async for chunk in chunks:
            check()
            if at + len(chunk) > address.size:
                raise ValueError(f"the update has more than the {address.size} bytes that it was to have")
            if at == 0 and len(chunk) == address.size:
                part.arrived = at = len(chunk)
                self._keep(site, part.upload, await self._run(self._written_and_checked, part, chunk), check)
                return
            await self._run(_write, part.path, at, chunk)
            at += len(chunk)
            part.arrived = max(part.arrived, at)
        if at < address.size:
            raise Cut(f"the call ended after {at} of the update's {address.size} bytes; send the rest")
        self._keep(site, part.upload, await self._run(self._checked, part), check)

    def _keep(self, site: str, upload: str, update: Update, check: Callable[[], None]) -> None:
        self._parts.pop(site, None)
        check()
        if site in self._frozen:
            return
        before = self._whole.get(site)
        self._whole[site] = upload, update
        if before:
            _remove(before[1].path)

    def _written_and_checked(self, part: _Part, content: bytes) -> Update:
        _write(part.path, 0, content)
        return self._checked(part)

    def _checked(self, part: _Part) -> Update:
        """The update, under the name under which nothing is written."""
        whole = part.path.with_suffix(".safetensors")
        os.replace(part.path, whole)
        try:
            return Update(whole, self._model)
        except ValueError:
            part.arrived = 0
            _remove(whole)
            raise

    def _hold(self, site: str, upload: "_Upload") -> None:
        """Keep the place until the update counts, or its site has said nothing more for a while."""
        self._held[site] = upload
        asyncio.get_running_loop().call_later(min(QUIET_SECONDS, self._idle), upload.leave)


class _Upload:
    """One upload that is under way, and its place in the room."""

    def __init__(self, room: Room, address: Address, replaced: "asyncio.Future[None]", idle: float) -> None:
        self._room, self._address, self._replaced, self._idle = room, address, replaced, idle
        self._place: Place | None = None

    def leave(self) -> None:
        """Let others have the place."""
        if self._place:
            self._place.give_back()
        self._place = None

    async def chunks(
        self, messages: AsyncIterator[bytes], begin: Callable[[], Awaitable[None]]
    ) -> AsyncGenerator[bytes, None]:
        """What comes, until that is as much as is wanted, or nothing does; the next is read while one is kept."""
        wanted, silent = self._address.size - self._address.offset, 0.0
        following: asyncio.Future[bytes] | None = None
        try:
            await self._enter()
            await begin()
            following = asyncio.ensure_future(anext(messages, _END))
            while following:
                wait = min(QUIET_SECONDS if self._place else self._idle - silent, self._idle)
                await self._either(following, wait)
                if not following.done():
                    silent += wait
                    if silent >= self._idle:
                        raise Silent(f"nothing has come of the update for {self._idle:.0f} s; send the rest later")
                    self.leave()
                    continue
                if (chunk := following.result()) == _END:
                    return
                silent = 0.0
                await self._enter()
                wanted -= len(chunk)
                following = asyncio.ensure_future(anext(messages, _END)) if wanted > 0 else None
                yield chunk
        finally:
            if following:
                following.cancel()
                with suppress(BaseException):
                    await following

    async def _enter(self) -> None:
        """Wait for a place, unless there is one."""
        self._place = self._place or self._room.take_now(self._address.size)
        if self._place is None:
            place = asyncio.ensure_future(self._room.take(self._address.size))
            try:
                await self._either(place, None)
                self._place = await place
            except BaseException:
                if not place.cancel() and not place.cancelled():
                    place.result().give_back()
                raise

    async def _either(self, future: "asyncio.Future[Any]", seconds: float | None) -> None:
        """Wait for it so long.

        Raises:
            Replaced: the site has begun to send something else meanwhile.
        """
        await asyncio.wait((future, self._replaced), timeout=seconds, return_when="FIRST_COMPLETED")
        if self._replaced.done():
            raise Replaced(f"site {self._address.site} has begun to send something else")


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _write(path: Path, offset: int, content: bytes) -> None:
    """Write a part of an update where it belongs."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        left = memoryview(content)
        while left:
            written = os.pwrite(file, left, offset)  # a disk that fills up takes a part first, then raises
            left, offset = left[written:], offset + written
    finally:
        os.close(file)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
