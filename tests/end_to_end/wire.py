"""A long, narrow and lossy wire between two network interfaces: `python wire.py NAME NAME MBIT MILLISECONDS LOSS`.

Makes two interfaces and carries every IP packet from one to the other, each way with this rate, delay and share of lost
packets. Packets wait for their turn in a queue of at most a tenth of a second, as in a router, and are lost when it is
full. It is what `tc netem` would do, for kernels without it: the hosts' own TCP meets the delay and the loss.
"""

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
QUEUE_SECONDS = 0.1


@dataclass
class Direction:
    """Packets on their way from one interface to the other; `free` is when the next one may be put on the wire."""

    source: int
    target: int
    bits_per_second: float
    delay: float
    loss: float
    dice: random.Random
    free: float = 0.0
    under_way: deque[tuple[float, bytes]] = field(default_factory=deque)

    def take(self, packet: bytes, now: float) -> None:
        start = max(now, self.free)
        if start - now > QUEUE_SECONDS:
            return
        self.free = start + 8 * len(packet) / self.bits_per_second
        if self.dice.random() >= self.loss:
            self.under_way.append((self.free + self.delay, packet))

    def deliver(self, now: float) -> None:
        while self.under_way and self.under_way[0][0] <= now:
            os.write(self.target, self.under_way.popleft()[1])


def interface(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return device


def carry(directions: list[Direction]) -> None:
    poll = select.poll()
    by_source = {each.source: each for each in directions}
    for source in by_source:
        poll.register(source, select.POLLIN)
    while True:
        due = min((each.under_way[0][0] for each in directions if each.under_way), default=None)
        wait = None if due is None else max(0.0, (due - time.monotonic()) * 1000)
        for source, _ in poll.poll(wait):
            now = time.monotonic()
            try:
                while True:
                    by_source[source].take(os.read(source, 65536), now)
            except BlockingIOError:
                pass
        now = time.monotonic()
        for each in directions:
            each.deliver(now)


def main() -> None:
    one, other = interface(sys.argv[1]), interface(sys.argv[2])
    mbit, milliseconds, loss = map(float, sys.argv[3:])
    print("ready", flush=True)
    dice = random.Random(7)
    ways = ((one, other), (other, one))
    carry([Direction(*way, mbit * 1e6, milliseconds / 1000, loss, dice) for way in ways])


if __name__ == "__main__":
    main()
