"""What comes in at the event loop and is to be put on disk: in order, and all that has come meanwhile at once."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any


class Batches:
    """Hands things to `work` in a thread; one batch at a time.

    Args:
        run: calls a function in a thread.
        work: called with what has come, in its order.
        failed: told of an error of `work`; what was to be done then is not done again.
        done: told each batch, after it.
    """

    def __init__(
        self,
        run: Callable[..., Awaitable[Any]],
        work: Callable[[Sequence[Any]], None],
        failed: Callable[[Exception], None],
        done: Callable[[Sequence[Any]], None] = lambda batch: None,
    ) -> None:
        self._run, self._work, self._failed, self._done = run, work, failed, done
        self._waiting: list[Any] = []
        self._task: asyncio.Task[None] | None = None

    def put(self, *things: Any) -> None:
        """Have these done, after all that came before."""
        self._waiting += things
        if self._task is None and self._waiting:
            self._task = asyncio.create_task(self._work_off())

    async def finished(self) -> None:
        """Return when all that has come is done."""
        while self._task:
            await asyncio.wait((self._task,))

    async def _work_off(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                try:
                    await self._run(self._work, batch)
                except Exception as error:
                    self._failed(error)
                self._done(batch)
        finally:
            self._task = None
