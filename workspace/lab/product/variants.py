"""Smaller forms of an exported model: each a function of the float32 graph, a file for the new one, and clips.

What stands before the network, the preparation of the waveform, keeps its full precision in all of them: of a
spectrogram in 8 bits nothing is left.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from lab.product.export import PREPARATION
from lab.product.runtime import INPUT
from lab.product.spotter import Floats

Make = Callable[[Path, Path, Sequence[Floats]], None]
"""From the float32 graph to a file, with batches of waveforms to calibrate on."""

SEEN = 99.99
"""Percent of the values seen that a range must hold."""
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
    """Weights and activations in 8 bits, in ranges seen on the clips; of these kinds of operators, else of all.

    From the least to the largest value seen, the network that hears the waveform itself would spend its bits on peaks:
    tiny fell from 0.87 to 0.56 of 400 synthetic clips, and stays at 0.86 with the ranges of `SEEN` percent.
    """

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
            calibrate_method=CalibrationMethod.Percentile,
            # One batch's activations at a time, for any method; the library has named it after the first that had it.
            extra_options={"CalibPercentile": SEEN, "CalibStridedMinMax": 1},
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
    """Without the quantiser's advice to the root logger, and what it prints of its progress."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        root.setLevel(level)


def _reader(batches: Sequence[Floats]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Batches by number, as the library asks for them."""

        def __init__(self) -> None:
            self._rest = iter(batches)

        def __len__(self) -> int:
            return len(batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            """Only these follow."""
            self._rest = iter(batches[start_index:end_index])

        def get_next(self) -> dict[str, Floats] | None:
            """The next one."""
            batch = next(self._rest, None)
            return None if batch is None else {INPUT: batch}

    return Reader()
