"""Where a result comes from: everything that decides it, as `config.json` has it, and what of it is different here."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kws.config import ExperimentConfig
from kws.model import build_model, frozen_digest, trained_weights
from lab import HOUSE
from lab.asked import Asked
from lab.claims import sounds_of
from lab.records import versions
from shard_descriptors.corpus import ClipFormat, Corpus

PACKAGES = ("federation", "rules", "shard_descriptors", "workspace")
CODE = (*(f"{package}/*.py" for package in PACKAGES), "pyproject.toml", "constraints.txt")
"""What of this project decides a result, and is looked at for local changes."""

TITLES = {
    "code.commit": "the code is that of another commit",
    "code.changes": "the code has other local changes",
    "data.digest": "the recordings are others",
    "model.trained": "the model begins with other weights",
    "model.frozen": "what is frozen of the model is different",
}


def provenance(
    config: ExperimentConfig,
    asked: Asked,
    shards: Mapping[str, Mapping[str, Any]],
    form: ClipFormat,
    corpus: Corpus | None = None,
    sounds: Sequence[bytes | None] | None = None,
) -> dict[str, Any]:
    """All that decides a result, and where it was made: for `Run.write_config`.

    config, asked: the experiment, and what else the run does. shards: what the sites told, the partition with it.
    corpus, sounds: the experimenter's own copy, where there is one, and `lab.claims.sounds_of` it.

    Beside these: `code` (commit, and a digest of local changes), `model` (digests of what is trained, before training,
    and of what is frozen), `data` (a digest of all samples, labels, speakers and splits), `host`, and `versions` of
    what decodes, deals and computes.
    """
    return {
        "config": config.to_dict(),
        "asked": asked.to_dict(),
        "shards": {site: dict(shard) for site, shard in shards.items()},
        "code": code(),
        "model": model_digests(config, form),
        "data": corpus and data(corpus, sounds),
        "host": host(),
        "versions": versions(),
    }


def differences(record: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What of a run's record is not so here, in words, the most important first; empty if all is the same.

    Both are made by `provenance`; what one of them does not tell is not compared.
    """
    then, now = dict(_flat(record)), dict(_flat(here))
    both = [name for name in then if name in now and then[name] is not None and now[name] is not None]
    found = [f"{title} ({then[name]:.12}, here {now[name]:.12})" for name, title in TITLES.items()
             if name in both and then[name] != now[name]]  # fmt: skip
    if "code" in record and "code" in here and _changes(then) != _changes(now):
        found.append("the code had local changes then" if _changes(then) else "the code has local changes here")
    found += [
        f"{name.replace('.', ' ', 1)} is {now[name]}; it was {then[name]}"
        for name in both
        if name.startswith(("versions.", "host.")) and name != "host.name" and then[name] != now[name]
    ]
    gone = [name for name in then if name.startswith("versions.") and name not in now]
    return found + [f"{name.removeprefix('versions.')} is not here; it was {then[name]}" for name in gone]


def _changes(flat: Mapping[str, Any]) -> bool:
    return flat.get("code.changes") is not None


def code() -> dict[str, str | None]:
    """The commit, and a SHA-256 of what differs from it (None: nothing); without git, of all code, and no commit."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        files = sorted(path for folder in PACKAGES for path in (HOUSE / folder).rglob("*.py"))
        return {"commit": None, "changes": _digest_of(files)}
    changed = _git("diff", "HEAD", "--binary", "--", *CODE) or b""
    added = (_git("ls-files", "--others", "--exclude-standard", "-z", "--", *CODE) or b"").split(b"\0")
    files = [HOUSE / os.fsdecode(name) for name in sorted(added) if name]
    told = hashlib.sha256(changed + _digest_of(files).encode()).hexdigest() if changed or files else None
    return {"commit": commit.decode().strip(), "changes": told}


def host() -> dict[str, Any]:
    """The machine of the notebook, which need not be that of a site."""
    cuda = torch.cuda.is_available()
    return {
        "name": platform.node(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
    }


def model_digests(config: ExperimentConfig, form: ClipFormat) -> dict[str, str]:
    """SHA-256 of the tensors that are trained, as they are before it, and of what is frozen."""
    model = build_model(config.model, config.training.seed, form)
    trained = hashlib.sha256()
    for name, array in sorted(trained_weights(model).items()):
        trained.update(f"{name} {array.shape} ".encode() + array.tobytes())
    return {"trained": trained.hexdigest(), "frozen": frozen_digest(model)}


def data(corpus: Corpus, sounds: Sequence[bytes | None] | None = None) -> dict[str, Any]:
    """The corpus: its name, the path that DATA names, if it does, and its digest."""
    named = os.environ.get("DATA")
    path = str(Path(named).expanduser().resolve()) if named and Path(named).expanduser().exists() else named or None
    return {"name": corpus.name, "path": path, "digest": data_digest(corpus, sounds)}


def data_digest(corpus: Corpus, sounds: Sequence[bytes | None] | None = None) -> str:
    """SHA-256 over name, place, label, speaker, split and decoded samples of every utterance."""
    digest = hashlib.sha256(json.dumps([corpus.format.sample_rate, corpus.format.num_samples]).encode())
    for utterance, sound in zip(corpus.utterances, sounds or sounds_of(corpus), strict=True):
        about = (utterance.name, utterance.start, utterance.label, utterance.speaker, utterance.split)
        digest.update(json.dumps(about).encode() + (sound or b"cannot be read"))
    return digest.hexdigest()


def _git(*arguments: str) -> bytes | None:
    command = ("git", "-C", str(HOUSE), *arguments)
    try:
        return subprocess.run(
            command, capture_output=True, check=True, env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
        ).stdout
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return None


def _digest_of(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        if path.is_file():
            digest.update(f"{path.relative_to(HOUSE)} ".encode() + path.read_bytes())
    return digest.hexdigest()


def _flat(values: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{group}{name}.")
        else:
            yield f"{group}{name}", value
