"""`python -m federation.director`: a director from its `director.yaml`; what `director/start_director.sh` runs."""

import argparse
import asyncio
import logging
import signal
import sys
from contextlib import suppress
from pathlib import Path

from federation.director.server import serve
from federation.errors import (
    FederationError,
)
from federation.logs import configure_logging
from federation.settings import DirectorSettings, load_director

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """Start a director from `director.yaml`; what is given here wins over the file."""
    parser = argparse.ArgumentParser(prog="start_director.sh", description=main.__doc__)
    parser.add_argument("--config", type=Path, default=Path("director/director.yaml"))
    parser.add_argument("--host", help="name or address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on; 0 takes a free one and prints it")
    parser.add_argument("--state", type=Path, help="folder in which experiments are kept over restarts")
    options = parser.parse_args(arguments)
    try:
        configure_logging("director")
        settings = load_director(
            options.config, listen_host=options.host, listen_port=options.port, state=options.state
        )
        asyncio.run(_until_stopped(settings))
    except (FederationError, OSError) as error:
        sys.exit(f"director: {error}")


async def _until_stopped(settings: DirectorSettings) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await serve(settings)
    logger.info("stopped")


if __name__ == "__main__":
    main()
