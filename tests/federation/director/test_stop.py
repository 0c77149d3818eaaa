"""A director that is told to stop waits for the calls that are under way before it is gone."""

import asyncio
import logging
import traceback
from pathlib import Path

import pytest

from federation.director.server import serve
from federation.settings import DirectorSettings


def test_the_servers_stop_is_not_cancelled_along(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Cut short, it leaves calls to the end of the loop, which cancels them with a traceback in the log."""

    async def stop() -> list[str]:
        director = asyncio.create_task(serve(DirectorSettings(listen_port=0, state=tmp_path)))
        while not any("listening on" in record.getMessage() for record in caplog.records):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        director.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await director
        return [frame.name for frame in traceback.extract_tb(cancelled.value.__traceback__)]

    with caplog.at_level(logging.INFO):
        where = asyncio.run(stop())
    assert where[-1] == "_run_server"
