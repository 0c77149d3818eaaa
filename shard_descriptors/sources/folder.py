"""Any folder of recordings whose file names say what is spoken, and by whom."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from shard_descriptors.corpus import Corpus, CorpusError
from shard_descriptors.sources.rules import AUDIO_SUFFIXES, Rules, about, given_folder, text
from shard_descriptors.utterances import Utterance

PATTERN = r"(?P<label>[^/]+)/(?P<speaker>[^/_]+)_[^/]*"
"""<label>/<speaker>_<anything>."""


def load(
    data_path: Path | str,
    pattern: str = PATTERN,
    labels: Sequence[str] | None = None,
    other: str | None = None,
    sample_rate: int = 16_000,
    clip_seconds: float = 1.0,
    validation_percent: float = 10,
    test_percent: float = 10,
) -> Corpus:
    """The recordings in a folder and the folders below it. No audio is decoded.

    pattern: regular expression for the whole of a file's path below `data_path`, with / between folders and without
        the suffix. Its group `label` says what is spoken; `speaker` and `split` may be there; any other group becomes
        a column, such as `accent`.
    The other settings are those of `Rules`. Without `labels` they are the ones found, sorted; every site of a
    federation must find the same. Without the group `split`, a speaker's hash decides. Without the group `speaker`,
    the hash of each file's name decides, and a speaker will then be in several splits: scores flatter.

    Other files than `AUDIO_SUFFIXES`, and those whose name begins with a dot, are passed over.

    CorpusError for a folder that is not there or holds no recordings, for a pattern that cannot be used, and for a
    file that does not match it.
    """
    rules = Rules(labels, other, sample_rate, clip_seconds, validation_percent, test_percent)
    rule = _compiled(pattern)
    root = given_folder(data_path)
    matches = {name: rule.fullmatch(text(os.path.splitext(name)[0])) for name in sorted(_audio_files(root))}
    if not matches:
        raise CorpusError(f"{root} holds no recordings; looked for {' '.join(sorted(AUDIO_SUFFIXES))}")
    if wrong := [name for name, match in matches.items() if match is None]:
        raise CorpusError(
            f"{root / wrong[0]}{f' (and {len(wrong) - 1} others)' if len(wrong) > 1 else ''} "
            f"does not match the pattern {pattern!r}; rename or remove it, or change the setting pattern"
        )
    return rules.corpus(root.name, (_utterance(rules, root, name, m) for name, m in matches.items() if m is not None))


def _utterance(rules: Rules, root: Path, name: str, match: re.Match[str]) -> Utterance:
    found = {group: value or "" for group, value in match.groupdict().items()}
    label, speaker, split = found.pop("label"), found.pop("speaker", None), found.pop("split", None)
    path = os.path.join(root, *name.split("/"))
    with about(path):
        return rules.utterance(name, path, label, speaker, split, columns=found.items())


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        rule = re.compile(pattern)
    except re.error as error:
        raise CorpusError(f"pattern is {pattern!r}, which is not a regular expression: {error}") from error
    if "label" not in rule.groupindex:
        raise CorpusError(f"pattern is {pattern!r}; it needs a group (?P<label>...) that says what is spoken")
    return rule


def _audio_files(root: Path) -> Iterator[str]:
    """Paths of the recordings below `root`, relative to it, with / between folders."""

    def refuse(error: OSError) -> None:
        raise CorpusError(f"{error.filename} cannot be listed ({error.strerror}); change its permissions") from error

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [each for each in folders if not each.startswith(".")]
        for file in files:
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in AUDIO_SUFFIXES:
                yield _readable(os.path.relpath(os.path.join(folder, file), root).replace(os.sep, "/"))


def _readable(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(f"the file name {name!r} is not UTF-8; rename the file") from error
    return name
