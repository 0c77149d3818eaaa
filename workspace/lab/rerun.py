"""A run once more, from its record: the same federation on this machine, and what is different here."""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from kws.config import ExperimentConfig
from lab import HOUSE
from lab.asked import Asked
from lab.provenance import differences, provenance
from lab.session import brings_own, clip_format
from shard_descriptors.corpus import Corpus
from shard_descriptors.partition.contract import assign, digest
from shard_descriptors.partition.schemes import scheme_of
from shard_descriptors.sources.registry import open_corpus

DESCRIPTOR = "shard_descriptors.superb_ks.SuperbKsShardDescriptor"


class RecordError(ValueError):
    """A record that cannot be repeated here; says why."""


@dataclass(frozen=True)
class Repeat:
    """A run that is to be repeated, as `lab.demo.run_demo` takes it.

    asked: the experiment of the record, and what else the run does. shards: what each site told. data_path: where the
    corpus lies; None: as DATA says, else synthetic speech. different: what is not as it was, in words.
    """

    asked: Asked
    shards: Mapping[str, Mapping[str, Any]]
    data_path: str | None
    different: list[str]

    def sites(self, folder: Path) -> dict[str, Sequence[str]]:
        """By site, the command that starts it with its recorded shard; its settings are written into the folder."""
        return envoys(self.shards, folder)


def repeat(path: Path) -> Repeat:
    """What a `config.json` has recorded, to be run again: every site of it is started on this machine, with its shard.

    The corpus is the one that DATA names, else the one at the record's path. What is different here stops nothing.

    Raises:
        RecordError: it is no record, or of recordings that cannot be shared out here.
        ConfigError: its experiment is none that this version knows.
    """
    record = read(path)
    config = ExperimentConfig.from_dict(record["config"])
    asked, data_path, shards = _asked(record, path), _where(record), record["shards"]
    corpus = open_corpus("speech_commands", data_path, **next(iter(shards.values()))["settings"])
    _refuse_other_partition(record, corpus)
    here = provenance(config, asked, shards, clip_format(shards), corpus)
    return Repeat(asked, shards, data_path, differences(record, here))


def read(path: Path) -> dict[str, Any]:
    """The record in a file.

    Raises:
        RecordError: it is none, or of recordings that cannot be shared out here.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        shards = {site: dict(shard) for site, shard in record["shards"].items()}
        whole = bool(shards) and all(map(_is_whole, shards.values()))
        whole = whole and all(isinstance(record.get(name, {}), dict) for name in ("config", "asked"))
        whole = whole and isinstance(record["config"], dict) and isinstance(record.get("data"), dict | None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} is no record of a run ({error}); give runs/NAME/config.json") from None
    if not whole:
        raise RecordError(f"{path} does not say how the recordings were shared out; it is of another version")
    if odd := [site for site in shards if not re.fullmatch(r"[A-Za-z0-9_-]+", site)]:  # files are named after them
        raise RecordError(f"{path}: not names of sites: {', '.join(map(repr, odd))}; letters, digits, '-' and '_'")
    if any(brings_own(shard) or not shard["settings"] for shard in shards.values()):
        raise RecordError(
            f"{path}: the sites trained on recordings that only they have, so no other machine repeats it by itself. "
            f"Start the same sites, and give their notebook KWS_RECORDED={path}"
        )
    return dict(record)


def envoys(shards: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[str, Sequence[str]]:
    """By site, the command that starts it with its recorded shard; writes their settings into the folder."""
    common = yaml.safe_load((HOUSE / "envoy" / "envoy.yaml").read_text(encoding="utf-8"))
    commands: dict[str, Sequence[str]] = {}
    for site, shard in shards.items():
        own = {name: shard[name] for name in ("shard", "of", "seed")} | dict(shard["settings"])
        settings = common | {
            "name": site,
            "params": common["params"] | {"envoys_on_this_machine": len(shards), "state": f"{site}.state"},
            "shard_descriptor": {"template": DESCRIPTOR, "params": own | {"partition": dict(shard["scheme"])}},
            "review": {"accept": "any", "folder": f"{site}.review"},
            "audit": f"{site}.audit.jsonl",
        }
        path = folder / f"{site}.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        commands[site] = [sys.executable, "-m", "federation.envoy", "--config", str(path)]
    return commands


def _is_whole(shard: Mapping[str, Any]) -> bool:
    """Whether a site's entry says what is needed to share the recordings out again."""
    kinds = {"settings": dict, "scheme": dict, "format": dict, "shard": int, "of": int, "seed": int}
    return {"corpus", "partition"} <= shard.keys() and all(isinstance(shard.get(n), k) for n, k in kinds.items())


def _asked(record: Mapping[str, Any], path: Path) -> Asked:
    """What was asked for beside the experiment, which is taken as it was in the end."""
    known = {field.name for field in fields(Asked)} - {"preset", "model", "changes", "recorded"}
    said = {name: value for name, value in record.get("asked", {}).items() if name in known}
    return Asked(**said, recorded=str(path.resolve()))


def _where(record: Mapping[str, Any]) -> str | None:
    """Where the corpus of a record may lie here; None: as DATA says, else synthetic speech."""
    path = (record.get("data") or {}).get("path")
    return path if path and not os.environ.get("DATA") and Path(path).exists() else None


def _refuse_other_partition(record: Mapping[str, Any], corpus: Corpus) -> None:
    shard = next(iter(record["shards"].values()))
    dealt = digest(corpus.utterances, assign(corpus.utterances, scheme_of(shard["scheme"]), shard["of"], shard["seed"]))
    if dealt != shard["partition"]:
        raise RecordError(
            f"the run was on {shard['corpus']} (partition {shard['partition']}), and here is {corpus.name} "
            f"(partition {dealt}); set DATA to the same corpus"
        )
