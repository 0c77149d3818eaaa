"""Which CUDA devices a site has, through the engine's monitor plugin (the `cuda` extra)."""

import logging
from collections.abc import Iterable, Mapping, Sequence
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


def slots(wanted: int | Mapping[str, int], cuda_devices: Sequence[int]) -> tuple[int | None, ...]:
    """The device of each slot, in which one experiment runs at a time: a CUDA device's number, or None for the CPU.

    wanted: how many slots, which take the site's devices in turn, or how many by device ("cuda:0", "cpu"); devices that
        are not there have none, and without any there is one on the CPU.

    >>> slots(1, [0, 1]), slots(3, [0, 1]), slots(2, []), slots({"cuda:1": 2, "cpu": 1}, [0, 1])
    ((0,), (0, 1, 0), (None, None), (1, 1, None))
    """
    if isinstance(wanted, int):
        devices: Sequence[int | None] = list(cuda_devices) or [None]
        return tuple(devices[number % len(devices)] for number in range(wanted))
    found: list[int | None] = []
    for name, count in wanted.items():
        device = None if name == "cpu" else int(name.removeprefix("cuda:"))
        if device is not None and device not in cuda_devices:
            logger.warning("params.slots names %s, which this site does not have", name)
            continue
        found += [device] * count
    return tuple(found) or (None,)
