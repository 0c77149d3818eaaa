"""Which CUDA devices a site has, through the engine's monitor plugin (the `cuda` extra)."""

import logging
from collections.abc import Iterable
from importlib import import_module
from typing import Any

logger = logging.getLogger(__name__)


def load_monitor(template: str | None) -> Any:
    """The device monitor of that dotted path, or None where the site has no driver or not the extra.

    The engine's plugin initialises the driver when it is imported
    (plugins/processing_units_monitor/pynvml_monitor.py:15), so a missing GPU shows as an error of the import.
    """
    if template is None:
        return None
    module, _, name = template.rpartition(".")
    try:
        return getattr(import_module(module), name)()
    except Exception as error:
        logger.info("no CUDA device monitor (%s: %s)", type(error).__name__, error)
        return None


def present(wanted: Iterable[int], monitor: Any) -> tuple[int, ...]:
    """Those of the wanted device numbers that exist, in order."""
    found = []
    for index in wanted:
        try:
            name = monitor.get_device_name(index)
        except Exception:
            logger.warning("CUDA device %d is named in the settings but not found", index)
            continue
        logger.info("CUDA device %d: %s", index, name if isinstance(name, str) else name.decode())
        found.append(index)
    return tuple(found)
