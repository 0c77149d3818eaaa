"""What each final model answered to each test utterance, as a table: every figure of a comparison is made of it.

A row for each model and utterance: `model` ("federated" or a baseline), `utterance` and `start` (which name it in its
corpus), `speaker`, `split`, `label`, and the model's `logit <label>` for every label, in the order of their ids. Which
site an utterance would belong to is not in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kws.metrics import METRICS, Evaluation
from shard_descriptors.utterances import Utterance

LOGIT = "logit "
FEDERATED = "federated"
"""The model that all sites have trained."""


@dataclass(frozen=True)
class Predictions:
    """The evaluations of several models on the same n utterances.

    evaluations: by model. speakers: of each utterance, None where nobody speaks or nobody knows who. labels: names in
    the order of their ids. names: (name, start) of each utterance. splits: its split.

    Raises:
        ValueError: an evaluation is of other utterances or labels.
    """

    evaluations: Mapping[str, Evaluation]
    speakers: tuple[str | None, ...]
    labels: tuple[str, ...]
    names: tuple[tuple[str, int], ...]
    splits: tuple[str, ...]

    def __post_init__(self) -> None:
        shape = (len(self.speakers), len(self.labels))
        truth = [evaluation.labels for evaluation in self.evaluations.values()]
        for model, evaluation in self.evaluations.items():
            if evaluation.logits.shape != shape or not np.array_equal(evaluation.labels, truth[0]):
                raise ValueError(f"{model} was not evaluated on the same {shape[0]} utterances with {shape[1]} labels")

    @classmethod
    def of(
        cls, evaluations: Mapping[str, Evaluation], utterances: Sequence[Utterance], labels: Sequence[str]
    ) -> "Predictions":
        """Evaluations of these utterances, in their order."""
        return cls(
            dict(evaluations),
            tuple(utterance.speaker for utterance in utterances),
            tuple(labels),
            tuple((utterance.name, utterance.start) for utterance in utterances),
            tuple(utterance.split for utterance in utterances),
        )

    def __len__(self) -> int:
        return len(self.speakers)

    @property
    def units(self) -> tuple[npt.NDArray[np.int64], int]:
        """What answers belong together: int64 (n,), from 0, and how many of them are speakers.

        Speakers come first, in the order of their names; each utterance of nobody, silence say, is a unit by itself.
        """
        known = sorted({speaker for speaker in self.speakers if speaker is not None})
        number = {speaker: place for place, speaker in enumerate(known)}
        nobody = iter(range(len(known), len(known) + len(self)))
        units = [next(nobody) if speaker is None else number[speaker] for speaker in self.speakers]
        return np.array(units, np.int64), len(known)

    def by_speaker(self, metric: str = "accuracy") -> pd.DataFrame:
        """One metric of every speaker (a row each, the most difficult first) by model, and the number of utterances."""
        units, speakers = self.units
        known = sorted({speaker for speaker in self.speakers if speaker is not None})
        spoken = units < speakers
        table = pd.DataFrame(index=pd.Index(known, name="speaker"))
        table["utterances"] = np.bincount(units[spoken], minlength=speakers)
        for model, evaluation in self.evaluations.items():
            own = Evaluation(evaluation.labels[spoken], evaluation.logits[spoken])
            names, values = own.sums_by(units[spoken], speakers)
            table[model] = METRICS[metric].score.of(dict(zip(names, values.T, strict=True)))
        models = list(self.evaluations)
        return table.sort_values(models[:1], ascending=METRICS[metric].direction == "max") if models else table

    def save(self, path: Path) -> None:
        """Write them, in one step."""
        unfinished = path.with_name(f".{path.name}")
        pq.write_table(self._table(), unfinished, compression="zstd")
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Read what `save` has written."""
        table = pq.read_table(path)
        labels = tuple(name.removeprefix(LOGIT) for name in table.column_names if name.startswith(LOGIT))
        number = {label: place for place, label in enumerate(labels)}
        evaluations = {}
        rows = table.slice(0, 0)
        for model in dict.fromkeys(table["model"].to_pylist()):
            rows = table.filter(pc.equal(table["model"], model))
            logits = np.column_stack([rows[f"{LOGIT}{label}"].to_numpy() for label in labels])
            truth = np.array([number[label] for label in rows["label"].to_pylist()], np.int64)
            evaluations[model] = Evaluation(truth, logits)
        names = tuple(zip(rows["utterance"].to_pylist(), rows["start"].to_pylist(), strict=True))
        return cls(evaluations, tuple(rows["speaker"].to_pylist()), labels, names, tuple(rows["split"].to_pylist()))

    def _table(self) -> pa.Table:
        texts = {name: pa.string() for name in ("model", "utterance", "speaker", "split", "label")}
        logits = {f"{LOGIT}{label}": pa.float32() for label in self.labels}
        schema = pa.schema(
            {"model": texts["model"], "utterance": texts["utterance"], "start": pa.int64()} | texts | logits
        )
        names, starts = zip(*self.names, strict=True) if self.names else ((), ())
        parts = [
            pa.table(
                [
                    [model] * len(self), names, starts, self.speakers, self.splits,
                    [self.labels[number] for number in evaluation.labels], *evaluation.logits.T,
                ], schema=schema,
            )
            for model, evaluation in self.evaluations.items()
        ]  # fmt: skip
        return pa.concat_tables(parts) if parts else schema.empty_table()
