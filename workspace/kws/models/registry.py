"""The families by the `model_type` of their configuration."""

from collections.abc import Mapping

from kws.models.family import Family

FAMILIES: Mapping[str, Family] = {
    "wav2vec2": Family("Wav2Vec2ForSequenceClassification", "wav2vec2"),
}
