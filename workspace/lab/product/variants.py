"""Smaller forms of an exported model: each a function of the float32 graph, a file for the new one, and clips.

What stands before the network, the preparation of the waveform, keeps its full precision in all of them: of a
spectrogram in 8 bits nothing is left.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lab.product.export import PREPARATION
from lab.product.runtime import INPUT
from lab.product.spotter import Floats

Make = Callable[[Path, Path, Sequence[Floats]], None]
"""From the float32 graph to a file, with batches of waveforms to calibrate on."""

BLOCK = 32
"""Weights that share a scale where only weights are quantised."""


def dynamic(*kinds: str) -> Make:
    """Weights in 8 bits, activations as they come; of these kinds of operators, else of all that can be."""

    def make(graph: Path, made: Path, _: Sequence[Floats]) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # ONNX Runtime multiplies matrices faster by weights with a sign, and convolves by those without only.
        sign = QuantType.QInt8 if kinds == ("MatMul",) else QuantType.QUInt8
        quantize_dynamic(
            graph,
            made,
            op_types_to_quantize=list(kinds) or None,
            per_channel=kinds == ("MatMul",),
            weight_type=sign,
            nodes_to_exclude=preparing(graph),
        )

    return make


def static(*kinds: str) -> Make:
    """Weights and activations in 8 bits, in ranges seen on the clips; of these kinds of operators, else of all."""

    def make(graph: Path, made: Path, batches: Sequence[Floats]) -> None:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        quantize_static(
            graph,
            made,
            _reader(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(kinds) or None,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=preparing(graph),
            calibrate_method=CalibrationMethod.MinMax,
        )

    return make


def float16(graph: Path, made: Path, _: Sequence[Floats]) -> None:
    """Weights and activations in 16 bits, waveform and logits in 32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(graph)
    onnx.save(convert_float_to_float16(model, keep_io_types=True, node_block_list=preparing(graph)), made)


def weights_only(bits: int) -> Make:
    """The weights of matrix products in so many bits, in blocks with a scale each; activations stay float32."""

    def make(graph: Path, made: Path, _: Sequence[Floats]) -> None:
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(
            onnx.load(graph), bits=bits, block_size=BLOCK, accuracy_level=4, nodes_to_exclude=preparing(graph)
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(made))

    return make


VARIANTS: Mapping[str, Make] = {
    "dynamic_int8": dynamic(),
    "dynamic_int8_matmul": dynamic("MatMul"),
    "static_int8": static(),
    "static_int8_conv_matmul": static("Conv", "MatMul"),
    "static_int8_matmul": static("MatMul"),
    "float16": float16,
    "weights_int8": weights_only(8),
    "weights_int4": weights_only(4),
}
"""All but the float32 graph itself, by name."""


def preparing(graph: Path) -> list[str]:
    """The names of the nodes that prepare the waveform."""
    import onnx

    loaded = onnx.load(graph, load_external_data=False)
    return [node.name for node in loaded.graph.node if node.name.startswith(PREPARATION)]


@contextmanager
def silently() -> Iterator[None]:
    """Without the quantiser's advice to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _reader(batches: Sequence[Floats]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._rest, None)
            return None if batch is None else {INPUT: batch}

    return Reader()
