"""A saved model as a graph: it answers as PyTorch does, and an app needs nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
from corpora import BESIDE_THE_REPO, read_all
from small_families import checkpoint
from typer.testing import CliRunner

from kws.config import HEADS, ModelRecipe
from kws.model import Classifier, build_model, save_pretrained
from kws.models.registry import FAMILIES
from lab.cli import app
from lab.product import runtime
from lab.product.export import EXAMPLE, LABELS, TOLERANCE, Exported, export, fold, most_apart, named
from lab.product.extras import require
from lab.product.preparation import Prepared
from lab.product.runtime import open_exported
from lab.product.spotter import EXPORTED, Floats, SpotterError, load
from shard_descriptors.corpus import ClipFormat
from shard_descriptors.sources.speech_commands import load as load_corpus

HOUSE = Path(__file__).resolve().parents[3]
WEB = "onnxruntime-web@1.30.0"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny(saved_model: Path) -> Path:
    return saved_model


@pytest.fixture(scope="module")
def exported(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(str(tiny), tmp_path_factory.mktemp("exported") / "out")


def some_sound(batch: int, length: int, seed: int = 0) -> Floats:
    sound = np.random.default_rng(seed).normal(0, 0.1, (batch, length)).astype(np.float32)
    sound[0, length * 2 // 3 :] = 0  # padding, which masks are made of
    return sound


def apart(saved: Path, graph: Path, *sounds: Floats) -> float:
    one, other = load(str(saved)), open_exported(graph, 1)
    return max(float(np.abs(one.logits(sound) - other.logits(sound)).max()) for sound in sounds)


def saved_with_other_weights(kind: str, folder: Path, **recipe: object) -> Classifier:
    """A model of the family whose every trained tensor has moved, as after training."""
    model = build_model(
        ModelRecipe(str(checkpoint(kind, folder / "from")), **recipe),  # type: ignore[arg-type]
        1,
        ClipFormat(),
    )
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.requires_grad:
                weights += torch.randn(weights.shape, generator=draw) * 0.05
    save_pretrained(model, folder / "model")
    return model.eval()


def test_any_batch_and_length_is_answered_as_in_pytorch(tiny: Path, exported: Exported) -> None:
    sounds = [some_sound(*shape) for shape in ((1, 16000), (7, 16000), (2, 9999), (1, 40000))]
    assert apart(tiny, exported.path, *sounds) < TOLERANCE
    assert exported.apart < TOLERANCE


def test_real_clips_are_answered_as_in_pytorch(tiny: Path, exported: Exported, real_corpus: Path) -> None:
    clips = [each for each in load_corpus(real_corpus).utterances if each.split == "test"]
    sound = read_all(clips[:: len(clips) // 100][:100])
    assert len(sound) == 100
    assert apart(tiny, exported.path, sound) < TOLERANCE


def test_the_graph_is_sound_and_open_in_batch_and_length(exported: Exported) -> None:
    graph = onnx.load(exported.path)
    onnx.checker.check_model(graph, full_check=True)
    axes = [axis.dim_param for axis in graph.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", "samples"]


def test_the_file_tells_nothing_of_the_machine_that_made_it(exported: Exported) -> None:
    written = exported.path.read_bytes()
    for place in (str(HOUSE), sys.prefix, str(Path.home()), "stack_trace"):
        assert place.encode() not in written, place


def test_the_labels_beside_it_are_the_models(tiny: Path, exported: Exported) -> None:
    told = json.loads((exported.path.with_name(LABELS)).read_text())
    spotter = load(str(exported.path.parent))
    assert tuple(told["labels"]) == spotter.labels == load(str(tiny)).labels
    assert (told["sample_rate"], told["window"]) == (spotter.sample_rate, spotter.window) == (16000, 16000)


def test_the_example_prints_the_word(exported: Exported, tmp_path: Path) -> None:
    """As it lies there, on a stereo recording that is shorter than a clip."""
    shutil.copytree(exported.path.parent, tmp_path / "app")
    heard = some_sound(1, 12000)
    soundfile.write(tmp_path / "word.wav", np.repeat(heard.T, 2, axis=1), 16000, subtype="FLOAT")
    command = [sys.executable, str(tmp_path / "app" / EXAMPLE), "word.wav"]
    printed = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    spotter = open_exported(exported.path, 1)
    answer = spotter.logits(np.pad(heard, ((0, 0), (0, 4000)))).argmax()
    assert printed.strip() == spotter.labels[answer]
    assert len((tmp_path / "app" / EXAMPLE).read_text().splitlines()) <= 24


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_preparation_is_the_feature_extractors(kind: str, tmp_path: Path) -> None:
    """Of every family, with sound, padding, silence, and clips longer and shorter than it was trained on."""
    model = build_model(ModelRecipe(str(checkpoint(kind, tmp_path))), 1, ClipFormat()).eval()
    prepared = Prepared(model).eval()
    for length in (16000, 9000, 16003):
        sound = torch.from_numpy(np.concatenate([some_sound(2, length), np.zeros((1, length), np.float32)]))
        with torch.inference_mode():
            wanted = model(sound)
            torch.testing.assert_close(prepared(sound), wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)


def test_whisper_hears_through_a_spectrogram_in_the_graph(tmp_path: Path) -> None:
    saved_with_other_weights("whisper", tmp_path, head="weighted_sum", trained="head", cut_positions=True)
    made = export(str(tmp_path / "model"), tmp_path / "out")
    sounds = [some_sound(3, 16000), some_sound(1, 8001), np.zeros((1, 16000), np.float32), some_sound(1, 40000)]
    assert apart(tmp_path / "model", made.path, *sounds) < TOLERANCE


def test_what_lora_has_added_is_in_the_graph(tmp_path: Path) -> None:
    """Of a network with a mask and a norm that is computed of its weights."""
    model = saved_with_other_weights("wav2vec2", tmp_path, trained="lora")
    made = export(str(tmp_path / "model"), tmp_path / "out")
    sound = some_sound(3, 16000)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(sound)).numpy()
    np.testing.assert_allclose(open_exported(made.path, 1).logits(sound), wanted, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_and_head_becomes_a_graph(kind: str, tmp_path: Path) -> None:
    for head in HEADS:
        saved_with_other_weights(kind, tmp_path / head, head=head)
        made = export(str(tmp_path / head / "model"), tmp_path / head / "out")
        assert apart(tmp_path / head / "model", made.path, some_sound(3, 16000)) < 5 * TOLERANCE


@pytest.mark.slow
def test_the_published_whisper_answers_real_clips_alike(real_corpus: Path, tmp_path: Path) -> None:
    encoder = BESIDE_THE_REPO / "whisper_tiny_en"
    if not encoder.is_dir():
        pytest.skip("no whisper_tiny_en beside the repository")
    recipe = ModelRecipe(str(encoder), head="weighted_sum", trained="head", cut_positions=True)
    save_pretrained(build_model(recipe, 0, ClipFormat()), tmp_path / "model")
    clips = [each for each in load_corpus(real_corpus).utterances if each.split == "test"]
    sound = read_all(clips[:: len(clips) // 100][:100])
    made = export(str(tmp_path / "model"), tmp_path / "out", sound)
    assert made.clips > 100
    assert made.apart < TOLERANCE


@pytest.mark.slow
def test_a_browser_runs_the_graph(exported: Exported, tmp_path: Path) -> None:
    """ONNX Runtime's WebAssembly in Node answers as its library here does."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        pytest.skip("no node and npm")
    got = subprocess.run([npm, "install", "--no-audit", "--no-fund", WEB], cwd=tmp_path, check=False, timeout=300)
    if got.returncode:
        pytest.skip(f"npm could not install {WEB}")
    sound = some_sound(2, 16000)
    (tmp_path / "sound.bin").write_bytes(sound.tobytes())
    (tmp_path / "run.mjs").write_text(
        f"""
        import {{ readFileSync }} from "node:fs";
        import * as ort from "onnxruntime-web";
        ort.env.wasm.numThreads = 1;
        const model = await ort.InferenceSession.create(readFileSync(process.argv[2]));
        const sound = new Float32Array(readFileSync("sound.bin").buffer.slice(0));
        const waveform = new ort.Tensor("float32", sound, [2, 16000]);
        const {{ {runtime.OUTPUT}: answer }} = await model.run({{ {runtime.INPUT}: waveform }});
        console.log(JSON.stringify(Array.from(answer.data)));
        """
    )
    command = [node, "run.mjs", str(exported.path)]
    ran = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=300)
    wanted = open_exported(exported.path, 1).logits(sound)
    np.testing.assert_allclose(np.array(json.loads(ran.stdout)).reshape(wanted.shape), wanted, atol=TOLERANCE)


def test_folding_leaves_nothing_to_compute_of_the_weights(tmp_path: Path) -> None:
    model = build_model(ModelRecipe(), 0, ClipFormat()).eval()
    sound = torch.from_numpy(some_sound(2, 16000))
    with torch.inference_mode():
        before = model(sound)
        fold(model.network)
        torch.testing.assert_close(model(sound), before)
    assert not [name for name in model.network.state_dict() if "parametrizations" in name]


def test_a_difference_is_seen(exported: Exported) -> None:
    session, sound = runtime.session(exported.path, 1), some_sound(2, 16000)
    answers = session.run(None, {runtime.INPUT: sound})[0]
    assert most_apart(session, [sound], [answers]) == 0
    answers[1, 3] += 0.25
    assert most_apart(session, [sound], [answers]) == pytest.approx(0.25, abs=1e-5)


def test_a_graph_that_answers_otherwise_is_not_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.product.export.TOLERANCE", -1.0)
    with pytest.raises(SpotterError, match="apart from PyTorch"):
        export(str(tiny), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_exported_model_is_not_exported_again(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(SpotterError, match="the saved model that it was made of"):
        export(str(exported.path), tmp_path)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(SpotterError, match=r"extra 'onnx' \(no_such_module not installed\): pip install"):
        require("onnx", "json", "no_such_module")


def broken(exported: Exported, tmp_path: Path) -> Path:
    shutil.copytree(exported.path.parent, tmp_path / "copy")
    return tmp_path / "copy" / EXPORTED


def test_a_file_that_is_no_graph_is_refused(exported: Exported, tmp_path: Path) -> None:
    path = broken(exported, tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SpotterError, match="cannot be loaded by ONNX Runtime"):
        open_exported(path)


def test_labels_of_another_model_are_refused(exported: Exported, tmp_path: Path) -> None:
    path = broken(exported, tmp_path)
    told = json.loads(path.with_name(LABELS).read_text())
    path.with_name(LABELS).write_text(json.dumps(told | {"labels": told["labels"][:5]}))
    with pytest.raises(SpotterError, match=r"answers 12 labels.*names 5"):
        open_exported(path)


def test_a_graph_of_another_task_is_refused(exported: Exported, tmp_path: Path) -> None:
    path = broken(exported, tmp_path)
    graph = onnx.load(path)
    old = graph.graph.input[0].name
    graph.graph.input[0].name = "image"
    for node in graph.graph.node:
        node.input[:] = ["image" if name == old else name for name in node.input]
    onnx.save(graph, path)
    with pytest.raises(SpotterError, match=r"needed is a graph that makes \['logits'\] of \['waveform'\]"):
        open_exported(path)


def test_what_the_exporter_tells_is_taken_out() -> None:
    node = onnx.helper.make_node("Neg", ["a"], ["b"], name="neg", doc_string="/home/me")
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'preparation', 'neg']")
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["s1", "s2"]) for name in "ab"]
    made = named(onnx.helper.make_model(onnx.helper.make_graph([node], "graph", value[:1], value[1:])))
    assert made.graph.node[0].name == "preparation/neg"
    assert b"/home/me" not in made.SerializeToString()


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    shown = CliRunner(env=os.environ | {"COLUMNS": "200"}).invoke(
        app, ["export", str(tmp_path / "none"), str(tmp_path / "out")]
    )
    assert shown.exit_code == 2
    assert "there is no folder" in shown.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["export", "quantise"])
def test_without_the_extra_the_command_says_how_to_get_it(
    command: str, tiny: Path, tmp_path: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as where it is not installed
    shown = CliRunner().invoke(app, [command, str(tiny), str(tmp_path / "out"), "--data", str(tiny_corpus)])
    assert shown.exit_code == 2
    assert "needs the extra 'onnx' (onnxscript not installed): pip install" in shown.output
    assert not (tmp_path / "out").exists()
