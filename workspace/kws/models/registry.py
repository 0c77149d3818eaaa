"""The families by the `model_type` of their configuration: those that `AutoModelForAudioClassification` knows."""

from collections.abc import Mapping

from kws.models.family import DROPOUTS, Family
from kws.models.spectrogram_transformer import SpectrogramTransformer
from kws.models.wav2vec2_bert import Wav2Vec2Bert
from kws.models.whisper import Whisper

CONFORMER_LORA = ("linear_q", "linear_v")
CONFORMER_DROPOUTS = (*DROPOUTS, "conformer_conv_dropout")

FAMILIES: Mapping[str, Family] = {
    "audio-spectrogram-transformer": SpectrogramTransformer(
        "ASTForAudioClassification",
        "audio_spectrogram_transformer",
        front=("embeddings.patch_embeddings",),
        layers="layers",
        dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob"),
        behind=("layernorm.",),
        masks=False,
        extractor="ASTFeatureExtractor",
    ),
    "data2vec-audio": Family("Data2VecAudioForSequenceClassification", "data2vec_audio"),
    "hubert": Family("HubertForSequenceClassification", "hubert"),
    "sew": Family("SEWForSequenceClassification", "sew", behind=("encoder.upsample.",)),
    "sew-d": Family(
        "SEWDForSequenceClassification",
        "sew_d",
        layers="encoder.encoder.layer",
        behind=("encoder.upsample.",),
        lora=("query_proj", "value_proj"),
        prefix="sew_d",  # the library says "sew-d", which no tensor has: of a bare SEWDModel it finds nothing
    ),
    "unispeech": Family("UniSpeechForSequenceClassification", "unispeech"),
    "unispeech-sat": Family("UniSpeechSatForSequenceClassification", "unispeech_sat"),
    "wav2vec2": Family("Wav2Vec2ForSequenceClassification", "wav2vec2"),
    "wav2vec2-bert": Wav2Vec2Bert(
        "Wav2Vec2BertForSequenceClassification",
        "wav2vec2_bert",
        front=(),
        extractor="SeamlessM4TFeatureExtractor",
        lora=CONFORMER_LORA,
        dropouts=CONFORMER_DROPOUTS,
    ),
    "wav2vec2-conformer": Family(
        "Wav2Vec2ConformerForSequenceClassification",
        "wav2vec2_conformer",
        behind=("encoder.layer_norm.",),
        unread=("encoder.pos_conv_embed.",),
        lora=CONFORMER_LORA,
        dropouts=CONFORMER_DROPOUTS,
    ),
    # Its attention reads the weights of its linear maps itself, and would pass by what LoRA adds to them.
    "wavlm": Family("WavLMForSequenceClassification", "wavlm", lora=("intermediate_dense", "output_dense")),
    "whisper": Whisper(
        "WhisperForAudioClassification",
        "encoder",
        front=("conv1", "conv2"),
        layers="layers",
        dropouts=("dropout", "attention_dropout", "activation_dropout"),
        masks=False,
        extractor="WhisperFeatureExtractor",
    ),
}
