"""Variants of an exported model: made, measured, compared, chosen."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_families import checkpoint
from typer.testing import CliRunner

from kws.config import ModelRecipe
from kws.metrics import Evaluation
from kws.model import build_model, save_pretrained
from lab.cli import app
from lab.product.choice import EAGER, FIRST, NONE, Choice, Row
from lab.product.export import EXAMPLE, LABELS, PREPARATION, export
from lab.product.heard import clips_for
from lab.product.measured import Job, in_own_process, measure
from lab.product.quantise import Effort, Quantised, quantise, tried
from lab.product.runtime import open_exported
from lab.product.spotter import EXPORTED, Floats, SpotterError, load
from lab.product.variants import VARIANTS, preparing, silently
from shard_descriptors.corpus import ClipFormat, Corpus
from shard_descriptors.sources.registry import open_corpus

TRIED = ("dynamic_int8_matmul", "static_int8_matmul")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Path) -> Corpus:
    return open_corpus("speech_commands", tiny_corpus)


@pytest.fixture(scope="module")
def tiny(saved_model: Path) -> Path:
    """A run."""
    return saved_model.parent


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantised") / "out"


@pytest.fixture(scope="module")
def quantised(tiny: Path, out: Path, corpus: Corpus) -> Quantised:
    return quantise(str(tiny), out, corpus, effort=Effort(seconds=0, calibration_clips=16), variants=TRIED)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph with a spectrogram in it."""
    folder = tmp_path_factory.mktemp("whisper")
    recipe = ModelRecipe(str(checkpoint("whisper", folder / "from")), head="weighted_sum", cut_positions=True)
    save_pretrained(build_model(recipe, 0, ClipFormat()), folder / "model")
    return export(str(folder / "model"), folder / "out").path


def noise(batch: int = 4) -> Floats:
    return np.random.default_rng(3).normal(0, 0.1, (batch, 16000)).astype(np.float32)


def row(variant: str, f1: float, milliseconds: float = 1.0, size: int = 1, peak: int = 1) -> Row:
    scores = {"accuracy": 1.0, "macro_f1": f1, "mean_iou": f1 / 2}
    return Row(variant, scores, size, {1: (milliseconds / 1e3, 1.0)}, peak)


ROWS = [
    row(EAGER, 0.9, 10, 100, 100),
    row(NONE, 0.9, 5, 100, 50),
    row("near", 0.895, 4, 30, 40),
    row("far", 0.88, 2, 20, 60),
    Row("broken", failed="no such operator"),
]


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        (FIRST, "near"),
        ("f1 within 0.4 points, then fastest", NONE),
        ("F1 within 2 points then  fastest", "far"),
        ("f1 within 2 points, then leanest", "near"),
        ("iou within 0.5 point, then smallest", "near"),
        ("accuracy within 0 points, then smallest", "far"),
    ],
)
def test_the_choice_is_the_first_of_those_that_are_good_enough(text: str, chosen: str) -> None:
    assert Choice.of(text).among(ROWS).variant == chosen


def test_pytorch_itself_is_never_chosen() -> None:
    assert Choice.of(FIRST).among([row(EAGER, 0.9, 1), row(NONE, 0.8, 50)]).variant == NONE


def test_nothing_is_chosen_of_nothing() -> None:
    with pytest.raises(SpotterError, match="no variant could be made"):
        Choice.of(FIRST).among([row(EAGER, 0.9), Row(NONE, failed="broken")])


@pytest.mark.parametrize(
    "text", ["", "fastest", "f1 within x points, then fastest", "recall within 1 points, then fastest"]
)
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(SpotterError, match=r"accuracy or f1 or iou.*fastest or smallest or leanest"):
        Choice.of(text)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_answers_nearly_as_the_graph_it_was_made_of(variant: str, whisper: Path, tmp_path: Path) -> None:
    made = tmp_path / EXPORTED
    with silently():
        VARIANTS[variant](whisper, made, [noise()])
    (tmp_path / LABELS).write_text(whisper.with_name(LABELS).read_text())
    wanted = open_exported(whisper, 1).logits(noise(5))
    answers = open_exported(made, 1).logits(noise(5))
    assert made.stat().st_size != whisper.stat().st_size
    assert np.corrcoef(answers.ravel(), wanted.ravel())[0, 1] > (0.9 if variant.startswith("static") else 0.97)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_spectrogram_keeps_its_precision(variant: str, whisper: Path, tmp_path: Path) -> None:
    assert len(preparing(whisper)) > 10
    with silently():
        VARIANTS[variant](whisper, tmp_path / EXPORTED, [noise()])
    graph = onnx.load(tmp_path / EXPORTED).graph
    weights = {each.name: each.data_type for each in graph.initializer}
    (transform,) = (node for node in graph.node if node.name.startswith(PREPARATION) and node.op_type == "Conv")
    assert weights[transform.input[1]] == onnx.TensorProto.FLOAT


def test_the_figures_are_those_of_the_answers(quantised: Quantised, tiny: Path, out: Path, corpus: Corpus) -> None:
    """The chosen one lies in the folder: its answers give the figures in the table."""
    spotter = open_exported(out / EXPORTED, 1)
    clips = clips_for(spotter, corpus, "test")
    found = {each.variant: each for each in quantised.rows}
    for name, asked in ((EAGER, load(str(tiny))), (quantised.chosen, spotter)):
        answers = np.concatenate(
            [asked.logits(clips.read(range(first, min(first + 16, len(clips))))) for first in range(0, len(clips), 16)]
        )
        scores = Evaluation(clips.labels, answers).scalars()
        assert dict(found[name].scores) == pytest.approx({metric: scores[metric] for metric in found[name].scores})
    assert found[quantised.chosen].size == (out / EXPORTED).stat().st_size


def test_every_variant_has_its_line_in_all_three_forms(quantised: Quantised, out: Path) -> None:
    assert [each.variant for each in quantised.rows] == [EAGER, NONE, *TRIED]
    told = json.loads((out / "quantise.json").read_text())
    text = (out / "quantise.txt").read_text()
    for one, written in zip(quantised.rows, told["rows"], strict=True):
        assert one.failed is None
        assert written["variant"] == one.variant
        assert f"\n{one.variant}" in text
        assert one.peak > 20e6
        for batch in (1, 16):
            median, late = one.latency[batch]
            assert 0 < median <= late
            assert written["speed_up"][str(batch)] == pytest.approx(quantised.rows[0].latency[batch][0] / median)
    assert told["chosen"] == quantised.chosen
    assert text.rstrip().endswith(f"chosen: {quantised.chosen} ({FIRST})")


def test_what_was_chosen_lies_as_an_export_does(quantised: Quantised, out: Path) -> None:
    assert quantised.chosen != EAGER
    assert {each.name for each in out.iterdir()} == {
        EXPORTED, LABELS, EXAMPLE, "quantise.txt", "quantise.json", "quantise.png"
    }  # fmt: skip


def test_the_plot_shows_the_table(quantised: Quantised) -> None:
    figure, table = quantised.plot(), quantised.table()
    widths = {place.get_xlabel(): [bar.get_width() for bar in place.patches][::-1] for place in figure.axes}
    assert widths["macro F1"] == pytest.approx(table["macro_f1"].to_list())
    assert widths["times as fast"] == pytest.approx(table["speed-up, 1"].to_list())


def test_a_variant_that_fails_says_why(tmp_path: Path, whisper: Path) -> None:
    """A graph that is cut off, whichever way it is to be changed."""
    cut = tmp_path / EXPORTED
    cut.write_bytes(whisper.read_bytes()[:3000])
    np.save(tmp_path / "sound.npy", noise(2))
    job = Job(str(cut), tmp_path / "sound.npy", 16000, 1, 0)
    for name in (NONE, *TRIED):
        file = cut if name == NONE else tmp_path / f"{name}.onnx"
        found = tried(name, cut, file, [noise()], job, np.zeros(2, np.int64))
        assert found.failed
        assert "\n" not in found.failed
        assert not found.latency


def test_a_process_that_dies_says_so(tmp_path: Path, whisper: Path) -> None:
    """As of too little memory: it is killed."""
    np.save(tmp_path / "sound.npy", noise(2))
    job = Job(str(whisper), tmp_path / "sound.npy", 16000, 1, seconds=60)
    before = set(active_children())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(in_own_process, job)
        while not (started := set(active_children()) - before):
            time.sleep(0.01)
        started.pop().kill()
        with pytest.raises(RuntimeError, match="its process died"):
            waiting.result(timeout=60)


def test_a_failed_variant_is_told_in_the_table() -> None:
    eager, none = (row(name, 0.9) for name in (EAGER, NONE))
    rows = tuple(Row(each.variant, each.scores, 1, {1: (1.0, 1.0), 16: (2.0, 2.0)}, 1) for each in (eager, none))
    made = Quantised((*rows, ROWS[-1]), NONE, FIRST, "corpus", 5, 5, 1)
    assert "broken failed: no such operator" in made.text()
    assert [bar.get_width() for bar in made.plot().axes[0].patches] == [1, 1]
    assert made.to_dict()["rows"][2]["speed_up"] == {}


def test_the_memory_is_of_the_process_alone(whisper: Path, tmp_path: Path) -> None:
    """This one has PyTorch in it, the other has not."""
    np.save(tmp_path / "sound.npy", noise(2))
    job = Job(str(whisper), tmp_path / "sound.npy", 16000, 1, 0)
    here, alone = measure(job), in_own_process(job)
    np.testing.assert_array_equal(here.logits, alone.logits)
    assert alone.peak < here.peak - 100e6


def test_few_clips_are_of_every_label(corpus: Corpus, tiny: Path) -> None:
    spotter = load(str(tiny))
    few = clips_for(spotter, corpus, "test", 24)
    assert len(few) == 24
    assert set(few.labels) == set(clips_for(spotter, corpus, "test").labels)


def test_a_corpus_of_other_labels_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    form = ClipFormat(labels=("yes", "no"))
    save_pretrained(build_model(ModelRecipe(), 0, form), tmp_path)
    with pytest.raises(SpotterError, match=r"does not know '_silence_'.*it knows yes, no"):
        clips_for(load(str(tmp_path)), corpus, "test")


def test_numbers_that_cannot_be_are_all_named() -> None:
    with pytest.raises(SpotterError, match=r"threads is 0; allowed: 1 and more; test clips is -1"):
        Effort(threads=0, test_clips=-1)


def test_the_command_names_the_variants(tiny: Path, tmp_path: Path, tiny_corpus: Path) -> None:
    shown = CliRunner().invoke(
        app, ["quantise", str(tiny), str(tmp_path / "out"), "--data", str(tiny_corpus), "--variant", "int2"]
    )
    assert shown.exit_code == 2
    assert "there is no variant 'int2'; allowed: dynamic_int8" in shown.output
