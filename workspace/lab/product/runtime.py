"""An exported model, asked by ONNX Runtime."""

from pathlib import Path

from lab.product.spotter import Spotter, SpotterError


def open_exported(path: Path) -> Spotter:
    """An exported model with the `labels.json` beside it.

    Raises:
        SpotterError: it cannot be loaded, or ONNX Runtime is not installed.
    """
    raise SpotterError(f"{path} is an exported model, which needs the extra 'onnx': pip install '.[onnx]'")
