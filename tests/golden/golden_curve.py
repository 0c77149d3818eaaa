"""The loss curve of `tiny`, which a change of numerics changes: how it is made, kept and compared.

See docs/numerics.md.
"""

import hashlib
import json
import os
import platform
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from corpora import BESIDE_THE_REPO, TINY

from kws.config import ExperimentConfig, Training
from lab.simulation import federated_averaging
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import Corpus
from shard_descriptors.sources.speech_commands import load as load_speech_commands
from shard_descriptors.sources.synthetic import make_corpus
from shard_descriptors.utterances import Utterance

HERE = Path(__file__).resolve().parent
KINDS = ("synthetic", "speech_commands")
"""Speech that is made on the spot, and recordings of people."""
SITES = 2
CLIPS_PER_LABEL = 4
ROUNDS = 20
CONFIG = ExperimentConfig(training=Training(rounds=ROUNDS, batch_size=24, seed=0, learning_rate=2e-4))
"""One step a round at each site; all else by default, so that a changed default shows, too."""
TOLERANCE = 1e-4
COARSE = 2e-2


def tolerance() -> float:
    """Largest relative difference of a loss on this machine; docs/numerics.md has the measurements.

    A processor without AVX2 takes other ways through PyTorch, whose rounding Adam's first steps multiply.
    """
    return TOLERANCE if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else COARSE


@dataclass(frozen=True)
class Golden:
    """A curve as it is kept.

    losses: mean training loss in nats of every site in every round, in the order round, site. clips: name and first
    sample of every clip, and sound: SHA-256 over their samples, so that other recordings are not taken for other
    numerics. made_with: versions and machine. because: why the curve was last renewed. before: the losses until then.
    """

    clips: tuple[tuple[str, int], ...]
    sound: str
    losses: tuple[float, ...]
    made_with: dict[str, str]
    because: str
    before: tuple[float, ...] = ()


def path_of(kind: str, folder: Path = HERE) -> Path:
    """Where the curve of one kind of speech is kept."""
    return folder / f"tiny_{kind}.json"


def load(kind: str, folder: Path = HERE) -> Golden:
    """The curve that is kept."""
    told = json.loads(path_of(kind, folder).read_text(encoding="utf-8"))
    told |= {name: tuple(told[name]) for name in ("losses", "before")}
    return Golden(**(told | {"clips": tuple((name, start) for name, start in told["clips"])}))


def save(golden: Golden, kind: str, folder: Path = HERE) -> None:
    """Keep a curve, a number a line, so that a diff of the file shows the old and the new one."""
    path_of(kind, folder).write_text(json.dumps(asdict(golden), indent=1) + "\n", encoding="utf-8")


def corpus_of(kind: str, folder: Path) -> Corpus | None:
    """Synthetic speech, made in `folder` unless it is there; or recordings of people, None where there are none."""
    if kind == "synthetic":
        if not (folder / kind).exists():
            make_corpus(folder / kind, TINY)
        return load_speech_commands(folder / kind)
    for root in (os.environ.get("DATA"), BESIDE_THE_REPO / "speech_commands_mini"):
        if root and Path(root).is_dir():
            return load_speech_commands(Path(root))
    return None


def chosen(corpus: Corpus) -> list[Utterance]:
    """The first training clips of each label."""
    found: dict[str, list[Utterance]] = defaultdict(list)
    for row in corpus.utterances:
        if row.split == "train" and len(found[row.label]) < CLIPS_PER_LABEL:
            found[row.label].append(row)
    return [row for label in corpus.format.labels for row in found[label]]


def named(corpus: Corpus, clips: Sequence[tuple[str, int]]) -> list[Utterance] | None:
    """The clips of these names and places; None where the corpus has not got them all."""
    rows = {(row.name, row.start): row for row in corpus.utterances}
    return [rows[clip] for clip in clips] if rows.keys() >= set(clips) else None


def sound(rows: Sequence[Utterance]) -> str:
    """SHA-256 over the clips' samples."""
    return hashlib.sha256(ClipSet(rows).read(np.arange(len(rows))).tobytes()).hexdigest()


def curve(rows: Sequence[Utterance], config: ExperimentConfig = CONFIG) -> list[float]:
    """The losses of a simulated federation of two sites that have every second clip, computed on this machine's CPU."""
    losses: list[float] = []

    def report(_round: int, _site: str, _task: str, metrics: dict[str, float]) -> None:
        losses.append(metrics["loss"])

    sites = {f"site{n}": (n, ClipSet(rows[n - 1 :: SITES])) for n in range(1, SITES + 1)}
    federated_averaging(config, sites, report)
    return losses


def made_with() -> dict[str, str]:
    """What else a loss may depend on."""
    found = {name: version(name) for name in ("torch", "transformers", "numpy")}
    threads = f"{torch.get_num_threads()} threads"
    return found | {"machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {threads}"}


def largest_difference(old: Sequence[float], new: Sequence[float]) -> float:
    """The largest relative difference of two curves; infinite where one is longer."""
    if len(old) != len(new):
        return float("inf")
    return float(np.max(np.abs(np.subtract(new, old)) / np.abs(old)))


def side_by_side(old: Sequence[float], new: Sequence[float]) -> str:
    """Two curves as a table and as bars: a row for each loss."""
    row = "{:>5}  {:>4}  {:>10}  {:>10}  {:>10}  {}".format
    most = max((*old, *new))
    lines = [row("round", "site", "old", "new", "difference", "o old, n new, * both")]
    for number, pair in enumerate(zip_longest(old, new)):
        texts = ["" if loss is None else f"{loss:.6f}" for loss in pair]
        places = [None if loss is None else round(40 * loss / most) for loss in pair]
        signs = "".join(
            "*" if places == [at, at] else "o" if places[0] == at else "n" if places[1] == at else " "
            for at in range(41)
        )
        difference = "" if None in pair else f"{pair[1] - pair[0]:+.2e}"
        lines.append(row(1 + number // SITES, 1 + number % SITES, *texts, difference, signs.rstrip()))
    return "\n".join(lines)
