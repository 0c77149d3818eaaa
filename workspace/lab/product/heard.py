"""A corpus as a finished model hears it: its own labels, rate and length of a clip."""

import numpy as np

from lab.product.spotter import Spotter, SpotterError
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import ClipFormat, Corpus


def clips_for(spotter: Spotter, corpus: Corpus, split: str, most: int | None = None) -> ClipSet:
    """The clips of a split, with the ids that the model gives the labels.

    most: no more than so many, the same ones each time, every label as often as it is in the split; None: all.

    Raises:
        SpotterError: the model does not know a label of the split, or there are no clips.
    """
    utterances = [each for each in corpus.utterances if each.split == split]
    if not utterances:
        raise SpotterError(f"{corpus.name} has no utterances of the split {split!r}; give others that have")
    if unknown := sorted({each.label for each in utterances} - set(spotter.labels)):
        raise SpotterError(
            f"the model does not know {', '.join(map(repr, unknown))} of {corpus.name}; it knows "
            f"{', '.join(spotter.labels)}. Give recordings of these labels"
        )
    if most is not None and len(utterances) > most:
        by_label = sorted(range(len(utterances)), key=lambda number: utterances[number].label)
        chosen = np.array(by_label)[np.linspace(0, len(utterances) - 1, most).round().astype(np.int64)]
        utterances = [utterances[number] for number in sorted(chosen)]
    return ClipSet(utterances, ClipFormat(spotter.labels, spotter.sample_rate, spotter.window))
