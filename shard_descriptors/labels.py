"""The twelve labels of keyword spotting, in SUPERB's order. The only place that knows them."""

KEYWORDS: tuple[str, ...] = (
    "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go",
)  # fmt: skip
SILENCE = "_silence_"
UNKNOWN = "_unknown_"
LABELS: tuple[str, ...] = (*KEYWORDS, SILENCE, UNKNOWN)

# The twenty words of Speech Commands v0.01 that are not keywords.
OTHER_WORDS: tuple[str, ...] = (
    "bed", "bird", "cat", "dog", "eight", "five", "four", "happy", "house", "marvin",
    "nine", "one", "seven", "sheila", "six", "three", "tree", "two", "wow", "zero",
)  # fmt: skip

# The five that v0.02 added; none is a keyword.
LATER_WORDS: tuple[str, ...] = ("backward", "follow", "forward", "learn", "visual")
WORDS: tuple[str, ...] = (*KEYWORDS, *OTHER_WORDS, *LATER_WORDS)
"""Every word that Speech Commands has a folder for."""

BACKGROUND_NOISE = "_background_noise_"  # the archive's folder of long noise files


def label_of(word: str) -> str:
    """Label of a word, or of an archive's folder name.

    A keyword is its own label, noise and silence are `_silence_`, any other word is `_unknown_`.

    >>> label_of("yes"), label_of("marvin"), label_of("_background_noise_")
    ('yes', '_unknown_', '_silence_')
    """
    if word in KEYWORDS:
        return word
    return SILENCE if word in (SILENCE, BACKGROUND_NOISE) else UNKNOWN
