import asyncio
import time

import pytest

from federation.director.presence import Presence


def test_a_name_belongs_to_one_process() -> None:
    async def story() -> None:
        presence = Presence(silence=60)
        assert await presence.claim("site", "first")
        assert await presence.claim("site", "first")
        assert await presence.claim("other", "second")
        assert presence.hear("site", "first")
        assert not presence.hear("site", "second")
        presence.leave("site", "second")  # not its own
        assert not presence.hear("site", "second")
        presence.leave("site", "first")
        assert presence.hear("site", "second")

    asyncio.run(story())


def test_a_sign_of_life_refuses_the_second_at_once() -> None:
    async def story() -> None:
        presence = Presence(silence=60)
        assert await presence.claim("site", "first")
        second = asyncio.create_task(presence.claim("site", "second"))
        await asyncio.sleep(0.05)
        assert not second.done()
        presence.hear("site", "first")
        assert not await asyncio.wait_for(second, 1)

    asyncio.run(story())


def test_silence_gives_the_name_to_the_next() -> None:
    async def story() -> None:
        presence = Presence(silence=0.3)
        assert await presence.claim("site", "first")
        heard = presence.last_heard("site")
        started = time.monotonic()
        claims = await asyncio.gather(presence.claim("site", "second"), presence.claim("site", "third"))
        assert sorted(claims) == [False, True]  # whoever came first has just been heard of
        assert 0.25 < time.monotonic() - started < 2
        assert presence.last_heard("site") > heard
        assert not presence.hear("site", "first")

    asyncio.run(story())


def test_a_broken_call_gives_the_name_back_unless_another_is_open() -> None:
    async def story() -> None:
        presence = Presence(silence=60)
        assert await presence.claim("site", "first")

        async def call() -> None:
            with presence.call("site", "first"):
                await asyncio.sleep(60)

        calls = [asyncio.create_task(call()) for _ in range(2)]
        claim = asyncio.create_task(presence.claim("site", "second"))
        for broken in calls:
            await asyncio.sleep(0.05)
            assert not claim.done()
            broken.cancel()
            with pytest.raises(asyncio.CancelledError):
                await broken
        assert await asyncio.wait_for(claim, 1)

    asyncio.run(story())


def test_who_was_never_heard_of_counts_from_the_start() -> None:
    async def story() -> None:
        before = time.monotonic()
        assert before <= Presence(silence=1).last_heard("site") <= time.monotonic()

    asyncio.run(story())
