"""SUPERB's keyword spotting: a frozen encoder, and a linear head on the weighted sum of its layers.

Yang et al. 2021 (arXiv:2105.01051); s3prl, `downstream/speech_commands/config.yaml` at 3c50982: projection of 256, mean
over time, Adam at a constant 1e-4 for 200,000 batches of 32, every label drawn equally often, gradients cut at 1.

Different here: SUPERB lets the rate be searched, and its 200,000 steps in one place are no federation. Twenty rounds
of twenty steps of 32 clips (Adam, a cosine, labels smoothed) suit what sites can do together: steps and not epochs, so
that a site with eighteen clips learns as much in a round as one with a thousand. With the encoder of Whisper tiny.en
on 2,421 real clips, one local epoch of fifteen rounds gave 121 sites of one speaker each 0.82; with equal steps they
stay within two points of pooled. The augmentation is off, as there, so that the encoder's output can be kept
(`training.cache`). Of Whisper's positions only those of the clip and a second behind it are kept: a fifteenth of the
work on one second.
"""

import json
from pathlib import Path

from kws.config import Augmentation, ExperimentConfig, ModelRecipe, Training


def experiment(model: str) -> ExperimentConfig:
    """Twenty rounds of twenty steps, which cost seconds once the encoder's output is kept."""
    return ExperimentConfig(
        ModelRecipe(
            model, head="weighted_sum", head_size=256, trained="head", dropout=0.0, cut_positions=is_whisper(model)
        ),
        Training(
            rounds=20,
            local_steps=20,
            batch_size=32,
            sampling="balanced",
            label_smoothing=0.1,
            optimizer="adam",
            learning_rate=5e-3,
            weight_decay=0.0,
            cache="probe",
            augmentation=Augmentation.none(),
        ),
    )


def is_whisper(model: str) -> bool:
    """Whether a folder says that it holds Whisper; of a name on the hub, whether it does."""
    try:
        told = json.loads((Path(model).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "whisper" in model.lower()
    return isinstance(told, dict) and told.get("model_type") == "whisper"
