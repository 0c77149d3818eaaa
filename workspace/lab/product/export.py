"""A saved model as a graph that hears raw waveforms and runs without PyTorch."""

import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils import parametrize

from lab.product import runtime
from lab.product.extras import require
from lab.product.heard import clips_for
from lab.product.preparation import Prepared
from lab.product.spotter import EXPORTED, Floats, SpotterError, TorchSpotter, load, quietly
from shard_descriptors.sources.registry import open_corpus

TOLERANCE = 1e-4
"""Most that a logit of the graph may be apart from PyTorch's; a hundred thousandth of logits above ten."""
CLIPS = 100
"""Of a corpus, to check on."""
PREPARATION = "preparation/"
"""What the names of the nodes begin with that stand before the network."""
OPSET = 20
LABELS, EXAMPLE = "labels.json", "example.py"
MODULES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """What was written. apart: the most that a logit is apart from PyTorch's, on so many clips."""

    path: Path
    clips: int
    apart: float

    def text(self) -> str:
        """A line for people."""
        size = self.path.stat().st_size / 1e6
        return (
            f"{self.path}: {size:.1f} MB, raw waveform to logits; on {self.clips} clips at most {self.apart:.1e} apart "
            f"from PyTorch. Beside it: labels.json and example.py"
        )


def export(model: str, out: Path, clips: Floats | None = None, trust_code: bool = False) -> Exported:
    """Write `model.onnx`, `labels.json` and `example.py` into a folder, checked against PyTorch.

    Args:
        model: a saved model's folder or name on the Hub.
        out: the folder; it is made, and what is there of these three is replaced once the new is right.
        clips: waveforms float32 (n, window) to check on, beside noise.
        trust_code: as in `load`.

    Raises:
        SpotterError: there is no such model, it cannot be exported, or the graph answers otherwise than PyTorch.
    """
    require("onnx", *MODULES)
    spotter = load(model, trust_code)
    if not isinstance(spotter, TorchSpotter):
        raise SpotterError(f"{model} is an exported model already; give the saved model that it was made of")
    checked = [*noises(spotter), *([] if clips is None else np.array_split(clips, -(-len(clips) // 16)))]
    wanted = [spotter.logits(each) for each in checked]
    out.mkdir(parents=True, exist_ok=True)
    unfinished = out / f".{EXPORTED}"
    try:
        write_graph(spotter, unfinished)
        apart = most_apart(runtime.session(unfinished), checked, wanted)
        allowed = TOLERANCE * max(1.0, max(float(np.abs(each).max()) for each in wanted) / 10)
        if not apart <= allowed:
            raise SpotterError(
                f"the graph of {model} is up to {apart:.1e} apart from PyTorch, allowed is {allowed:.0e}; nothing "
                f"was written. Please report this with the model's config.json"
            )
        unfinished.replace(out / EXPORTED)
    finally:
        unfinished.unlink(missing_ok=True)
    write_beside(spotter, out)
    return Exported(out / EXPORTED, sum(map(len, checked)), apart)


def export_checked(
    model: str, out: Path, source: str, data: str | None, settings: Mapping[str, Any], trust_code: bool = False
) -> Exported:
    """As `export`, with up to a hundred test clips of a corpus, where one is given, to check on.

    Args:
        source, data, settings: as `open_corpus` takes them; without data and settings, noise alone will do.

    Raises:
        SpotterError, CorpusError: as `export` and `open_corpus`.
    """
    if data is None and not settings:
        return export(model, out, trust_code=trust_code)
    require("onnx", *MODULES)
    clips = clips_for(load(model, trust_code), open_corpus(source, data, **settings), "test", CLIPS)
    return export(model, out, clips.read(range(len(clips))), trust_code)


def noises(spotter: TorchSpotter) -> list[Floats]:
    """Noise in batches of other sizes and lengths than the graph was traced with, one clip with silence behind it."""
    draw = np.random.default_rng(0)
    family, config = spotter.classifier.family, spotter.classifier.network.config
    least = max(family.least_samples(config), spotter.window // 2)
    made = [
        draw.normal(0, 0.1, (batch, length)).astype(np.float32)
        for batch, length in ((1, spotter.window), (3, least), (2, spotter.window * 5 // 4))
    ]
    made[1][1, least * 3 // 4 :] = 0
    return made


def write_graph(spotter: TorchSpotter, path: Path) -> None:
    """Write the graph alone; the spotter's network is changed, and answers the same.

    Raises:
        SpotterError: the exporter cannot do this network.
    """
    import onnx

    network = spotter.classifier.network
    fold(network)
    # Two clips, since a batch of one would become a constant, and a length that none of a network's sizes has.
    example = torch.randn(2, spotter.window, generator=torch.Generator().manual_seed(0)) * 0.1
    free = torch.export.Dim.DYNAMIC
    try:
        with quietly(), _without_chatter(), torch.no_grad():
            network.set_attn_implementation("eager")
            program = torch.onnx.export(
                Prepared(spotter.classifier).eval(),
                (example,),
                dynamo=True,
                input_names=[runtime.INPUT],
                output_names=[runtime.OUTPUT],
                dynamic_shapes=({0: free, 1: free},),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
            assert program is not None  # of dynamo=True
            graph = program.model_proto
    except Exception as error:  # the exporter wraps whatever the network does that a graph cannot hold
        kind = network.config.model_type
        raise SpotterError(
            f"a network of type {kind!r} with this head could not be made a graph: {reason(error)}"
        ) from error
    graph = named(graph)
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)


def fold(network: Any) -> None:
    """Put, in place, what is computed of weights at each call into the weights: the norm of the position's kernel."""
    for module in network.modules():
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def named(graph: Any) -> Any:
    """The graph with the nodes of the preparation named so, and without what the exporter tells of this machine.

    The axes are called `batch` and `samples`.
    """
    for node in graph.graph.node:
        told = {each.key: each.value for each in node.metadata_props}
        if "'preparation'" in told.get("pkg.torch.onnx.name_scopes", ""):
            node.name = PREPARATION + node.name
        del node.metadata_props[:]
        node.doc_string = ""
    (heard,), (answered,) = graph.graph.input, graph.graph.output
    for each in (heard, answered, *graph.graph.initializer):
        del each.metadata_props[:]
        each.doc_string = ""
    for axis, name in zip(heard.type.tensor_type.shape.dim, ("batch", "samples"), strict=True):
        axis.dim_param = name
    answered.type.tensor_type.shape.dim[0].dim_param = "batch"
    del graph.graph.value_info[:]  # in terms of the old names, and whoever wants it can infer it
    del graph.graph.metadata_props[:]
    return graph


def most_apart(session: Any, checked: Sequence[Floats], wanted: Sequence[Floats]) -> float:
    """The largest difference of a logit: of what the session answers to batches, and what was wanted."""
    answers = (session.run([runtime.OUTPUT], {runtime.INPUT: batch})[0] for batch in checked)
    return max(float(np.abs(one - other).max()) for one, other in zip(answers, wanted, strict=True))


def write_beside(spotter: TorchSpotter, out: Path) -> None:
    """Write `labels.json`, which tells an app all that it must know, and the example that reads it."""
    told = {
        "labels": list(spotter.labels),
        "sample_rate": spotter.sample_rate,
        "window": spotter.window,
        "input": f"{runtime.INPUT}: float32 (batch, samples), mono, -1 to 1, as recorded: no other preparation; it was "
        f"trained on clips of {spotter.window} samples, shorter ones padded with zeros at the end",
        "output": f"{runtime.OUTPUT}: float32 (batch, labels), before the softmax, in the order of the labels",
    }
    (out / LABELS).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name(EXAMPLE), out / EXAMPLE)


def reason(error: Exception) -> str:
    """The innermost reason, in one line: the outer ones tell how to report it to PyTorch."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _without_chatter() -> Iterator[None]:
    """The exporter tells what of other libraries is not installed, and which of its own parts are old."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
