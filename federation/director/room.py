"""Room for what is under way: so many bytes at a time, first come, first served.

A chunk of a model lies in memory while it is sent or received, on either side of gRPC. Small models have it many at a
time, large ones a few.
"""

import asyncio
from collections import deque

from federation.wire.models import CHUNK

ROOM = 64 * 2**20
"""Bytes that a director has under way each way: 16 large models, or a thousand small ones."""
LEAST, MOST = 2**16, 2 * CHUNK
"""What a transfer takes at least, and at most: one chunk that is on its way, and one that is being written."""


class Place:
    """A part of the room; given back once, however often that is said."""

    def __init__(self, room: "Room", size: int) -> None:
        self._room, self._size = room, size

    def give_back(self) -> None:
        """Somebody else may have it."""
        size, self._size = self._size, 0
        self._room._take_back(size)

    async def __aenter__(self) -> "Place":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.give_back()


class Room:
    """So many bytes; for one event loop."""

    def __init__(self, size: int = ROOM) -> None:
        self._size = self._free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def take_now(self, size: int) -> Place | None:
        """A place for a transfer of so many bytes, if there is one."""
        needed = self._needed(size)
        if self._waiting or needed > self._free:
            return None
        self._free -= needed
        return Place(self, needed)

    async def take(self, size: int) -> Place:
        """A place for a transfer of so many bytes, as soon as there is one."""
        if place := self.take_now(size):
            return place
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((self._needed(size), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came at the same moment
                self._take_back(self._needed(size))
            raise
        return Place(self, self._needed(size))

    def _take_back(self, size: int) -> None:
        self._free += size
        while self._waiting and self._waiting[0][0] <= self._free:
            needed, turn = self._waiting.popleft()
            if not turn.done():
                self._free -= needed
                turn.set_result(None)

    def _needed(self, size: int) -> int:
        return min(max(size, LEAST), MOST, self._size)
