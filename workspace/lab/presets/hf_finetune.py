"""Fine-tuning as Transformers' audio-classification example does it: 98.26 % on SUPERB's *validation* split.

`examples/pytorch/audio-classification/README.md` of huggingface/transformers at 10c776b: wav2vec2-base with a frozen
feature encoder, AdamW without decay at 3e-5, 5 epochs, warm-up over a tenth and linear decay, 4 batches of 32 to a
step; SpecAugment and dropout as in the model's published configuration. There in float16 on a V100 (14 minutes);
bfloat16 here, where a GPU has it.
"""

from kws.config import Augmentation, ExperimentConfig, ModelRecipe, Training


def experiment(model: str) -> ExperimentConfig:
    """Five rounds of one epoch."""
    return ExperimentConfig(
        ModelRecipe(model, trained="all_but_feature_encoder", spec_augment=True),
        Training(
            rounds=5,
            batch_size=32,
            accumulation=4,
            label_smoothing=0.0,
            learning_rate=3e-5,
            weight_decay=0.0,
            beta2=0.999,
            schedule="linear",
            warmup=0.1,
            augmentation=Augmentation.none(),
        ),
    )
