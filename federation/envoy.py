"""`python -m federation.envoy`: an envoy from its `envoy.yaml`; what `envoy/start_envoy.sh` runs."""

import argparse
import logging
import signal
import sys
from pathlib import Path
from types import FrameType

from federation.errors import FederationError
from federation.imports import import_engine
from federation.logs import configure_logging
from federation.settings import load_envoy

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """Start an envoy from `envoy.yaml`; what is given here wins over the file."""
    parser = argparse.ArgumentParser(prog="start_envoy.sh", description=main.__doc__)
    parser.add_argument("--config", type=Path, default=Path("envoy/envoy.yaml"))
    parser.add_argument("--name", help="the site's name")
    parser.add_argument("--director-host", help="where the director listens")
    parser.add_argument("--director-port", type=int, help="port on which the director listens")
    parser.add_argument("--cpu-threads", type=int, help="cores that this site may use")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _leave)
    try:
        settings = load_envoy(
            options.config,
            name=options.name,
            director_host=options.director_host,
            director_port=options.director_port,
            cpu_threads=options.cpu_threads,
        )
        configure_logging(settings.name, site=settings.name)
        import_engine()
        from federation.site.envoy import Envoy

        Envoy(settings).start()
    except (FederationError, ValueError, OSError) as error:
        sys.exit(f"envoy: {error}")
    except KeyboardInterrupt:
        logger.info("stopped")


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
