"""How many files and connections this process may have open, beside how many sites may come."""

import logging
import resource

from federation.director.edge import SITES

logger = logging.getLogger(__name__)

FILES_OF_A_SITE = 4
"""Connections of an envoy and of two trainers, and a file."""
FILES_BESIDES = 100


def raise_file_limit() -> int:
    """Allow this process as many open files as the system lets it; how many sites that is enough for.

    Where they are fewer than may register, the log says so.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return SITES
    sites = max(0, hard - FILES_BESIDES) // FILES_OF_A_SITE
    if sites < SITES:
        logger.warning(
            "this process may have %d files open, which is enough for some %d sites of the %d that may register; "
            "raise the limit (ulimit -Hn) before the director is started", hard, sites, SITES,
        )  # fmt: skip
    return min(sites, SITES)
