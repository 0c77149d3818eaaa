"""An exported model, asked by ONNX Runtime."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.product.extras import require
from lab.product.spotter import Floats, SpotterError, labels_beside

INPUT, OUTPUT = "waveform", "logits"
"""What an exported graph calls what goes in and what comes out."""


@dataclass(frozen=True)
class OnnxSpotter:
    """A graph in a session of ONNX Runtime, on the CPU."""

    session: Any
    labels: tuple[str, ...]
    sample_rate: int
    window: int

    def logits(self, waveforms: Floats) -> Floats:
        """Waveforms float32 (batch, num_samples) in [-1, 1] -> logits float32 (batch, num_labels)."""
        answers: Floats = self.session.run([OUTPUT], {INPUT: waveforms})[0]
        return answers


def open_exported(path: Path, threads: int | None = None) -> OnnxSpotter:
    """An exported model with the `labels.json` beside it.

    threads: on how many cores one batch is computed; None: on all of them.

    Raises:
        SpotterError: it cannot be loaded, or ONNX Runtime is not installed.
    """
    require("onnx", "onnxruntime")
    told = labels_beside(path)
    loaded = session(path, threads)
    given = ([each.name for each in loaded.get_inputs()], [each.name for each in loaded.get_outputs()])
    if given != ([INPUT], [OUTPUT]):
        raise SpotterError(
            f"{path} makes {given[1]} of {given[0]}; needed is a graph that makes ['{OUTPUT}'] of ['{INPUT}'], as "
            f"`kws export` writes it"
        )
    width = loaded.get_outputs()[0].shape[-1]
    if isinstance(width, int) and width != len(told["labels"]):
        raise SpotterError(f"{path} answers {width} labels, and the labels.json beside it names {len(told['labels'])}")
    return OnnxSpotter(loaded, **told)


def session(path: Path, threads: int | None = None) -> Any:
    """A session of ONNX Runtime for a graph, on the CPU.

    Raises:
        SpotterError: it cannot be loaded.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library has a class for each of a dozen reasons, and none above them
        raise SpotterError(f"{path} cannot be loaded by ONNX Runtime: {str(error).splitlines()[0]}") from error
