"""SUPERB's keyword spotting: a frozen encoder, and a linear head on the weighted sum of its layers.

Yang et al. 2021 (arXiv:2105.01051); s3prl, `downstream/speech_commands/config.yaml` at 3c50982: projection of 256, mean
over time, Adam at a constant 1e-4 for 200,000 batches of 32, every label drawn equally often, gradients cut at 1.

Different here: SUPERB lets the rate be searched, and 1e-3 gets there in a twentieth of the steps, of which a federation
has few. The augmentation is off, as there, so that the encoder's output can be kept (`training.cache`).
"""

from kws.config import Augmentation, ExperimentConfig, ModelRecipe, Training


def experiment(model: str) -> ExperimentConfig:
    """Twenty rounds of five epochs, which cost seconds once the encoder's output is kept."""
    return ExperimentConfig(
        ModelRecipe(model, head="weighted_sum", head_size=256, trained="head", dropout=0.0),
        Training(
            rounds=20,
            local_epochs=5.0,
            batch_size=32,
            sampling="balanced",
            label_smoothing=0.0,
            optimizer="adam",
            learning_rate=1e-3,
            weight_decay=0.0,
            beta2=0.999,
            schedule="constant",
            warmup=0.0,
            cache="probe",
            augmentation=Augmentation.none(),
        ),
    )
