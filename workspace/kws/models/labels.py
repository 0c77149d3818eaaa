"""Labels go by name, never by position: projects number them differently."""

from collections.abc import Sequence


def label_maps(labels: Sequence[str]) -> dict[str, dict[int, str] | dict[str, int]]:
    """The labels as a configuration of Transformers holds them."""
    return {"id2label": dict(enumerate(labels)), "label2id": {name: number for number, name in enumerate(labels)}}
