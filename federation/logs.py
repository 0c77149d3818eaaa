"""One line per event on standard error, the same form for every process."""

import logging

from openfl.utilities import add_log_level


def configure_logging(process: str) -> None:
    """Log to standard error as `time process level: message`; the engine's chatter only from warnings on."""
    add_log_level("METRIC", 25)  # the engine logs metrics at a level of its own
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s {process} %(levelname)s: %(message)s", datefmt="%H:%M:%S", force=True
    )
    quieten_engine()


def quieten_engine() -> None:
    """Silence what the engine logs about its own inner workings; what matters is logged by this package."""
    logging.getLogger("openfl").setLevel(logging.ERROR)
    logging.getLogger("openfl.transport.grpc.director_client").setLevel(logging.CRITICAL)
