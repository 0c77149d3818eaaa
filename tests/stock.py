"""The engine beside ours: a test with two subjects, of which the engine's must fail."""

from typing import Any

import pytest


def fault(*lines: str, stock: Any, ours: Any = None, raises: Any = AssertionError) -> Any:
    """Run a test with the engine's part and with ours as its `subject`; the engine's has to fail.

    Args:
        lines: `file.py:line` of the engine, where the fault is; docs/engine.md tells what it is.
        stock, ours: what differs: a class, or a function that does it their way. Without `ours` another test, which
            docs/engine.md names, shows our side.
        raises: what the engine's side fails with; anything else is an error of the test.
    """
    expected = pytest.mark.xfail(strict=True, raises=raises, reason=f"OpenFL 1.6, {' and '.join(lines)}")
    sides = [pytest.param(stock, id="stock", marks=expected)]
    return pytest.mark.parametrize("subject", [*sides, pytest.param(ours, id="ours")] if ours else sides)
