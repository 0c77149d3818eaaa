"""A disk that is full for a moment ends nothing at a site: what is to be written waits for room."""

import errno
import logging
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)
RETRY_SECONDS = 1.0
GIVE_UP_AFTER = 600.0
"""Seconds after which a disk that is still full is an error."""


def outlast(work: Callable[[], Any], what: str) -> Any:
    """The result of some work that writes; on a full disk it is done again every second, until there is room.

    Raises:
        OSError: the disk does not take it for another reason, or is full for `GIVE_UP_AFTER` seconds.
    """
    full_since: float | None = None
    while True:
        try:
            result = work()
        except OSError as error:
            now = time.monotonic()
            if error.errno not in FULL or (full_since and now > full_since + GIVE_UP_AFTER):
                raise
            if full_since is None:
                full_since = now
                logger.warning(
                    "the disk is full (%s): %s waits up to %.0f s for room", error.filename, what, GIVE_UP_AFTER
                )
            time.sleep(RETRY_SECONDS)
            continue
        if full_since is not None:
            logger.info("the disk has room again: %s is written", what)
        return result
