"""A checkpoint of some ten thousand weights for every family, as people have them: an encoder without a head."""

import hashlib
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from kws.config import HEADS, ModelRecipe
from kws.model import build_model
from kws.models.registry import FAMILIES
from shard_descriptors.corpus import ClipFormat

CONV = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
SEW = CONV | {"conv_dim": (16,) * 13, "squeeze_factor": 2}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "audio-spectrogram-transformer": ("ASTModel", {k: CONV[k] for k in list(CONV)[:4]} | {"max_length": 98}),
    "data2vec-audio": ("Data2VecAudioModel", CONV | {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3}),
    "hubert": ("HubertForCTC", CONV),
    "sew": ("SEWForCTC", SEW),
    "sew-d": ("SEWDModel", SEW),
    "unispeech": ("UniSpeechForPreTraining", CONV | {"codevector_dim": 8, "proj_codevector_dim": 8}),
    "unispeech-sat": ("UniSpeechSatModel", CONV),
    "wav2vec2": ("Wav2Vec2ForCTC", CONV | {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}),
    "wav2vec2-bert": (
        "Wav2Vec2BertModel",
        {k: CONV[k] for k in list(CONV)[:4]} | {"conv_depthwise_kernel_size": 3},
    ),
    "wav2vec2-conformer": ("Wav2Vec2ConformerModel", CONV | {"conv_depthwise_kernel_size": 3}),
    "wavlm": ("WavLMModel", CONV),
    "whisper": (
        "WhisperForConditionalGeneration",
        {
            "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "vocab_size": 10, "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "max_source_positions": 100,
        },
    ),
}  # fmt: skip


def checkpoint(kind: str, folder: Path, with_extractor: bool = True, source: str | None = None, **changes: Any) -> Path:
    """Write a checkpoint of the family with weights large enough to tell clips apart; Whisper's hears two seconds."""
    usual, settings = CONFIGS[kind]
    made = getattr(transformers, source or usual)
    torch.manual_seed(3)
    network = made(made.config_class(**settings | {"initializer_range": 0.3} | changes))
    network.save_pretrained(folder)
    if with_extractor:
        FAMILIES[kind].default_extractor(network.config).save_pretrained(folder)
    return folder


def forget(folder: Path, word: str) -> None:
    """Remove the tensors of that name from a checkpoint."""
    kept = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if word not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def digests(folder: str) -> list[str]:
    """What is built, with LoRA and masking, of every family's checkpoint in a folder: every tensor and an answer."""
    told = []
    torch.set_num_threads(1)  # an answer is rounded otherwise with another number of threads
    for kind, family in FAMILIES.items():
        for head in HEADS:
            junk = [torch.full((32,), float("nan")) for _ in range(50)]
            del junk  # memory that is handed out again must not be seen
            recipe = ModelRecipe(f"{folder}/{kind}", head=head, trained="lora", spec_augment=family.masks)
            model = build_model(recipe, 4, ClipFormat(num_samples=8000)).eval()
            state = hashlib.sha256()
            for name, tensor in model.network.state_dict().items():
                state.update(name.encode() + tensor.numpy().tobytes())
            with torch.inference_mode():
                state.update(model(torch.linspace(-1, 1, 8000)[None]).numpy().tobytes())
            told.append(f"{kind} {head} {state.hexdigest()}")
    return told
