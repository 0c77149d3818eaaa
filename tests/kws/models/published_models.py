"""Published checkpoints: what their config.json says where it differs from the library's class, and how large they are.

The sizes are those of the weights on the Hugging Face hub (the page `NAME/tree/main`), float32, to three digits, saved
from the class that is named; where it says M, parameters by the paper or by the SUPERB leaderboard, which count the
parts for pretraining too.
"""

from dataclasses import dataclass, field
from typing import Any

CONV = [64, 128, 128, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512]
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
XLARGE = {"hidden_size": 1280, "num_hidden_layers": 48, "num_attention_heads": 16, "intermediate_size": 5120}
STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
BIASED = STABLE | {"conv_bias": True}
QUANTIZER = {"codevector_dim": 768, "proj_codevector_dim": 768}


def whisper(width: int, layers: int, vocabulary: int = 51865) -> dict[str, Any]:
    """Table 1 of Radford et al. 2022."""
    both = {"attention_heads": width // 64, "layers": layers, "ffn_dim": 4 * width}
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in both.items()}
    return {"d_model": width, "vocab_size": vocabulary} | sides


def sew(width: int, layers: int) -> dict[str, Any]:
    """scripts/pt-sew.sh and pt-sew-d.sh of github.com/asappresearch/sew."""
    sizes = {"hidden_size": width, "num_attention_heads": width // 64, "intermediate_size": 4 * width}
    return sizes | {"num_hidden_layers": layers, "conv_dim": CONV, "num_conv_pos_embeddings": 31, "vocab_size": 32}


@dataclass(frozen=True)
class Published:
    """One checkpoint; `tensors` are those of its encoder."""

    name: str
    kind: str
    saved_from: str
    size: str
    tensors: int
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> float:
        """How many parameters that is."""
        number, unit = self.size.split()
        return float(number) * {"MB": 1e6 / 4, "GB": 1e9 / 4, "M": 1e6}[unit]


PUBLISHED = (
    Published("facebook/wav2vec2-base", "wav2vec2", "Wav2Vec2ForPreTraining", "380 MB", 211),
    Published("facebook/wav2vec2-large", "wav2vec2", "Wav2Vec2ForPreTraining", "317.38 M", 403, LARGE | QUANTIZER),
    Published(
        "facebook/wav2vec2-xls-r-1b", "wav2vec2", "Wav2Vec2ForPreTraining", "965 M", 806,
        XLARGE | BIASED | {"codevector_dim": 1024, "proj_codevector_dim": 1024},
    ),
    Published("facebook/hubert-base-ls960", "hubert", "HubertModel", "378 MB", 211),
    Published("facebook/hubert-large-ll60k", "hubert", "HubertModel", "1.26 GB", 422, LARGE | BIASED),
    Published("facebook/hubert-xlarge-ll60k", "hubert", "HubertModel", "3.85 GB", 806, XLARGE | BIASED),
    Published(
        "ntu-spml/distilhubert", "hubert", "HubertModel", "23.49 M", 49,
        {"num_hidden_layers": 2, "feat_proj_layer_norm": False},
    ),
    Published("microsoft/wavlm-base", "wavlm", "WavLMModel", "94.70 M", 248),
    Published("microsoft/wavlm-large", "wavlm", "WavLMModel", "1.26 GB", 488, LARGE | STABLE),
    Published(
        "microsoft/unispeech-large-1500h-cv", "unispeech", "UniSpeechForPreTraining", "1.27 GB", 422,
        LARGE | BIASED | QUANTIZER,
    ),
    Published("microsoft/unispeech-sat-base-plus", "unispeech-sat", "UniSpeechSatForPreTraining", "382 MB", 211),
    Published(
        "microsoft/unispeech-sat-large", "unispeech-sat", "UniSpeechSatModel", "316.61 M", 422,
        LARGE | BIASED,
    ),
    Published("asapp/sew-tiny-100k-ft-ls100h", "sew", "SEWForCTC", "163 MB", 217, sew(512, 12)),
    Published("asapp/sew-d-tiny-100k-ft-ls100h", "sew-d", "SEWDForCTC", "96.5 MB", 220, sew(384, 12)),
    Published("asapp/sew-d-mid-400k", "sew-d", "SEWDModel", "78.8 M", 410, sew(512, 24)),
    Published("facebook/data2vec-audio-base", "data2vec-audio", "Data2VecAudioModel", "373 MB", 230),
    Published("facebook/data2vec-audio-large", "data2vec-audio", "Data2VecAudioModel", "1.25 GB", 422, LARGE),
    Published(
        "facebook/wav2vec2-conformer-rel-pos-large", "wav2vec2-conformer", "Wav2Vec2ConformerForPreTraining", "2.48 GB",
        926, LARGE | BIASED | QUANTIZER | {"position_embeddings_type": "relative"},
    ),
    Published(
        "facebook/wav2vec2-conformer-rope-large", "wav2vec2-conformer", "Wav2Vec2ConformerForPreTraining", "2.38 GB",
        855, LARGE | BIASED | QUANTIZER | {"position_embeddings_type": "rotary"},
    ),
    Published("facebook/w2v-bert-2.0", "wav2vec2-bert", "Wav2Vec2BertModel", "2.32 GB", 773),
    Published(
        "MIT/ast-finetuned-speech-commands-v2", "audio-spectrogram-transformer", "ASTForAudioClassification", "342 MB",
        199, {"max_length": 128, "num_labels": 35},
    ),
    Published(
        "MIT/ast-finetuned-audioset-10-10-0.4593", "audio-spectrogram-transformer", "ASTForAudioClassification",
        "86.6 M", 199, {"num_labels": 527},
    ),
    *(
        Published(f"openai/whisper-{name}", "whisper", "WhisperForConditionalGeneration", size, tensors, settings)
        for name, size, tensors, settings in (
            ("tiny", "151 MB", 67, whisper(384, 4)),
            ("base", "290 MB", 97, whisper(512, 6)),
            ("small", "967 MB", 187, whisper(768, 12)),
            ("medium", "3.06 GB", 367, whisper(1024, 24)),
            ("large-v2", "6.17 GB", 487, whisper(1280, 32)),
            ("large-v3", "1543.49 M", 487, whisper(1280, 32, 51866) | {"num_mel_bins": 128}),
        )
    ),
)  # fmt: skip
