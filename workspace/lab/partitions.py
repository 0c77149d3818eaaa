"""A partition, seen before it is used: what `kws partition` prints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from shard_descriptors.corpus import Corpus, CorpusError
from shard_descriptors.partition.contract import Scheme
from shard_descriptors.partition.report import Preview, preview, shard_table
from shard_descriptors.partition.schemes import scheme_of
from shard_descriptors.sources.registry import open_corpus

SUPERB_TEMPLATE = "shard_descriptors.superb_ks.SuperbKsShardDescriptor"
DEFAULT_SCHEME = "speakers"
"""How Speech Commands is shared out where nothing else is said."""


def make_preview(site: Path | None = None, partition: Mapping[str, Any] | None = None, **given: Any) -> Preview:
    """What a partition makes of a corpus.

    Args:
        site: an `envoy.yaml` whose settings hold unless others are given.
        partition: the scheme with its settings.
        **given: `source`, `data_path`, `of`, `seed` and the source's own settings; None counts as not given.

    Raises:
        CorpusError, PartitionError: as the envoy would.
    """
    settings: dict[str, Any] = _of_site(site) if site else {"source": "speech_commands", "partition": DEFAULT_SCHEME}
    settings |= {name: value for name, value in given.items() if value is not None}
    scheme = scheme_of(partition or settings["partition"])
    num_shards, seed = settings.pop("of", None), settings.pop("seed", 0)
    settings = {name: value for name, value in settings.items() if name not in ("partition", "shard")}
    corpus = open_corpus(**settings)
    if num_shards is None:
        num_shards = scheme.natural_shards(corpus.utterances) or 2
    return preview(corpus, scheme, num_shards, seed)


def scheme_settings(scheme: str | None, options: Sequence[str]) -> dict[str, Any] | None:
    """What `kws partition` was told of the scheme, as in an `envoy.yaml`; None: nothing. CorpusError as `values`.

    >>> scheme_settings("dirichlet", ["alpha=0.3"])
    {'scheme': 'dirichlet', 'alpha': 0.3}
    """
    return {"scheme": scheme or DEFAULT_SCHEME, **values(options)} if scheme or options else None


def values(pairs: Sequence[str]) -> dict[str, Any]:
    """`["alpha=0.3"]` as a mapping. CorpusError for what is not `name=value`."""
    found = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        try:
            if not equals:
                raise ValueError
            found[name.strip()] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:
            raise CorpusError(f"{pair!r} is not a setting; write name=value, e.g. alpha=0.3") from error
    return found


def compare(corpus: Corpus, schemes: Mapping[str, Scheme], num_shards: int, seed: int) -> dict[str, Preview]:
    """What each scheme makes of the corpus, by the name given to it."""
    return {name: preview(corpus, scheme, num_shards, seed) for name, scheme in schemes.items()}


def comparison_table(previews: Mapping[str, Preview]) -> pd.DataFrame:
    """A row for each scheme: how unlike its shards are, how many speakers it tears apart, what one more shard moves."""
    rows = {
        name: {
            "smallest shard": min(summary["utterances"]["train"] for summary in shown["shards"].values()),
            "largest shard": max(summary["utterances"]["train"] for summary in shown["shards"].values()),
            "label KL": shown["skew"]["label_kl_mean"],
            "quantity Gini": shown["skew"]["quantity_gini"],
            "torn speakers": shown["torn_speakers"],
            "one more moves": shown["one_more_shard"] and shown["one_more_shard"]["utterances"],
            "partition": shown["partition"],
        }
        for name, shown in previews.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("scheme")


def as_text(shown: Preview, split: str = "train") -> str:
    """The preview as a person reads it."""
    settings = " ".join(f"{name}={value}" for name, value in shown["scheme"].items() if name != "scheme")
    table = shard_table(shown["shards"], split)
    divergences = [value for value in shown["skew"]["label_kl"].values() if value is not None]
    torn, moved = shown["torn_speakers"], shown["one_more_shard"]
    lines = {
        "partition": shown["partition"],
        "torn speakers": f"{torn} of {shown['speakers']}{' LEAKS SPEAKERS: they are on several sites' if torn else ''}",
        "label skew": f"KL {shown['skew']['label_kl_mean']:.4f} nats on average, {max(divergences):.4f} at most",
        "quantity skew": f"Gini {shown['skew']['quantity_gini']:.4f}",
        "one more shard": "not possible"
        if moved is None
        else f"moves {moved['utterances']:.1%} of the utterances, {moved['speakers']:.0f} speakers",
    }
    return (
        f"{shown['corpus']}, by {shown['scheme']['scheme']}{f' ({settings})' if settings else ''}, "
        f"{shown['of']} shards, seed {shown['seed']}; {split} utterances\n\n"
        f"{table.to_string(max_rows=20, float_format='{:.0f}'.format)}\n\n"
        + "\n".join(f"{name:<15} {text}" for name, text in lines.items())
    )


def _of_site(path: Path) -> dict[str, Any]:
    try:
        described = yaml.safe_load(path.read_text(encoding="utf-8"))["shard_descriptor"]
        settings = dict(described["params"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise CorpusError(f"{path} is not an envoy.yaml with a shard_descriptor ({error!r})") from error
    if described["template"] == SUPERB_TEMPLATE:
        settings = {"source": "speech_commands", "partition": DEFAULT_SCHEME} | settings
    return {"partition": "own"} | settings
