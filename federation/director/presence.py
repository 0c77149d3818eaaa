"""Which envoy process works under which site's name.

The engine accepts every envoy under every name; of two with one name one gets all the work, the other idles
(component/director/director.py:96). Here each envoy process sends an id of its own with its
calls (`federation.site.client`), and a name belongs to one process for as long as that one is there.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Presence:
    """Who holds each site's name, and when the holder was heard of last; for one event loop.

    `silence`: a holder of which nothing was heard for so many seconds has lost the name to the next who asks.
    `on_leave` is told a name that is no longer its holder's.
    """

    def __init__(self, silence: float, on_leave: Callable[[str], None] = lambda site: None) -> None:
        self.silence = silence
        self._on_leave = on_leave
        self._started = time.monotonic()
        self._holders: dict[str, str] = {}
        self._heard: dict[str, float] = {}
        self._calls: Counter[tuple[str, str]] = Counter()
        self._changed = asyncio.Event()

    def last_heard(self, site: str) -> float:
        """When the site was heard of last, on the monotonic clock; the start of this object if never."""
        return self._heard.get(site, self._started)

    def holds(self, site: str, process: str) -> bool:
        """Whether this process works under the site's name."""
        return self._holders.get(site) == process

    def hear(self, site: str, process: str) -> bool:
        """Note that a process works under a site's name; False, and nothing noted, where another one holds it."""
        if self._holders.setdefault(site, process) != process:
            return False
        self._heard[site] = time.monotonic()
        self._change()
        return True

    def see(self, site: str) -> None:
        """Note that something of a site was heard of, whichever process it was; it may speak before its envoy does."""
        self._heard[site] = time.monotonic()

    async def claim(self, site: str, process: str) -> bool:
        """Take a site's name, or learn that its holder is alive: that one was heard of after this call.

        A holder that was killed has usually been noticed by then; one whose machine is gone is waited for, `silence`
        at most.
        """
        asked = time.monotonic()
        while not self.hear(site, process):
            if self._heard[site] > asked:
                return False
            left = self._heard[site] + self.silence - time.monotonic()
            if left <= 0:
                self.leave(site, self._holders[site])
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
        return True

    def leave(self, site: str, process: str) -> None:
        """Give a name back, if this process holds it."""
        if self.holds(site, process):
            del self._holders[site]
            self._change()
            self._on_leave(site)

    def forget(self, site: str, process: str) -> None:
        """Give a name back that was claimed in vain, and know nothing of it."""
        if self.holds(site, process):
            self.leave(site, process)
            self._heard.pop(site, None)

    @contextmanager
    def call(self, site: str, process: str) -> Iterator[None]:
        """A call that stays open: when the last one of a process breaks off, the process is gone."""
        self._calls[site, process] += 1
        try:
            yield
        except asyncio.CancelledError:
            if self._calls[site, process] == 1:
                self.leave(site, process)
            raise
        finally:
            self._calls[site, process] -= 1
            self._calls += Counter()  # drops those at zero

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
