"""The official Speech Commands rule that says which split a speaker belongs to.

Source: `which_set` in the data set's README and in TensorFlow's speech_commands/input_data.py.
"""

import hashlib
import os

MAX_CLIPS_PER_WORD = 2**27 - 1  # ~134M, the constant of the published rule


def speaker_of(filename: str) -> str:
    """Speaker id in a file name: what stands before `_nohash_`, without folders.

    >>> speaker_of("bed/0c40e715_nohash_1.wav")
    '0c40e715'
    """
    return os.path.basename(filename).partition("_nohash_")[0]


def which_split(speaker: str, validation_percent: float = 10, testing_percent: float = 10) -> str:
    """Split of a speaker id (or of a file named after its speaker).

    All clips of a speaker land in one split, on any machine, whatever else the corpus holds.

    >>> which_split("bed/0c40e715_nohash_1.wav")
    'test'
    """
    digest = hashlib.sha1(speaker_of(speaker).encode(), usedforsecurity=False).hexdigest()
    percent = int(digest, 16) % (MAX_CLIPS_PER_WORD + 1) * (100.0 / MAX_CLIPS_PER_WORD)
    if percent < validation_percent:
        return "validation"
    return "test" if percent < validation_percent + testing_percent else "train"
