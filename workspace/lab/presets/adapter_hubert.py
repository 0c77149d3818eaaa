"""A bottleneck behind every frame of a frozen HuBERT, and a classifier of two layers.

MLOps-essi-upc/TAED2-Falsettos, `model-card.md` at 3f2d299 and `src/models/` at 5746c57: hubert-base-ls960 on Speech
Commands, an adapter of 128, dropout 0.05, Adam at a constant 1e-5, batches of 256, at most 100 epochs, and an end after
five without a better F1 in validation.

Different here: the projection between the feature encoder and the transformer stays frozen as well, since training it
costs a pass back through the whole transformer; F1 is the mean over labels.
"""

from kws.config import Augmentation, ExperimentConfig, ModelRecipe, Training


def experiment(model: str) -> ExperimentConfig:
    """At most a hundred rounds of one epoch."""
    return ExperimentConfig(
        ModelRecipe(model, head="adapter", adapter_hidden_size=128, trained="head", dropout=0.05),
        Training(
            rounds=100,
            patience=5,
            batch_size=256,
            label_smoothing=0.0,
            max_grad_norm=None,
            optimizer="adam",
            learning_rate=1e-5,
            weight_decay=0.0,
            beta2=0.999,
            schedule="constant",
            warmup=0.0,
            augmentation=Augmentation.none(),
        ),
        best_metric="macro_f1",
    )
