"""Labels go by name, never by position: projects number them differently."""

from collections.abc import Sequence


def label_maps(labels: Sequence[str]) -> dict[str, dict[int, str] | dict[str, int]]:
    """The labels as a configuration of Transformers holds them."""
    return {"id2label": dict(enumerate(labels)), "label2id": {name: number for number, name in enumerate(labels)}}


def kept_rows(published: Sequence[str], labels: Sequence[str]) -> dict[int, int]:
    """By the number of a label, the number that it had in a published head; only those that it knew.

    Upper case and underscores at the ends do not count, unless that makes two labels one: some write "silence" for
    "_silence_".

    >>> kept_rows(["silence", "no", "yes"], ["yes", "up", "_silence_"])
    {0: 2, 2: 0}
    """
    rows = {number: published.index(label) for number, label in enumerate(labels) if label in published}
    plain = [_plain(label) for label in published]
    ours = [_plain(label) for label in labels]
    for number, label in enumerate(ours):
        if number not in rows and plain.count(label) == ours.count(label) == 1:
            rows[number] = plain.index(label)
    return dict(sorted(rows.items()))


def _plain(label: str) -> str:
    return label.casefold().strip("_ ")
