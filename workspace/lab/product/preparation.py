"""What a feature extractor does to a waveform, as a part of the network: so an app that runs the graph needs none.

A spectrogram is a convolution: its kernels are what is linear in it, up to the absolute value (removing the mean,
pre-emphasis, window, Fourier transform), times each other.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kws.models.classifier import Classifier
from kws.models.family import ModelError
from kws.sound import sound_mask

Doubles = npt.NDArray[np.float64]

FLOOR = float(np.finfo(np.float32).eps)
"""Below the logarithm, in Kaldi's filter banks; Whisper has 1e-10."""
PREEMPHASIS = 0.97


class Prepared(nn.Module):
    """Raw waveforms float32 (batch, num_samples), of any length that the network can hear, to logits."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.preparation = preparation_of(classifier)
        self.network = classifier.network

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Waveforms float32 (batch, num_samples) in [-1, 1] -> logits float32 (batch, num_labels)."""
        logits: torch.Tensor = self.network(**self.preparation(waveforms)).logits
        return logits


def preparation_of(classifier: Classifier) -> nn.Module:
    """A module that makes of waveforms what `classifier.inputs` makes of them, by name.

    Raises:
        ModelError: the preparation of this family is not known here.
    """
    kind = classifier.network.config.model_type
    if classifier.family.hears_waveforms:
        return AsItIs(classifier)
    made = {
        "whisper": LogMel,
        "audio-spectrogram-transformer": PaddedFilterBank,
        "wav2vec2-bert": StandardisedFilterBank,
    }
    if kind not in made:
        raise ModelError(f"how a waveform is prepared for {kind} is not known here; known: {', '.join(made)}")
    return made[kind](classifier)


class AsItIs(nn.Module):
    """Standardised, with the mask where there is one; `Family.inputs` is made of what a graph can hold."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self._family, self._config = classifier.family, classifier.network.config
        self._extractor = classifier.extractor

    def forward(self, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
        """Waveforms float32 (batch, num_samples) -> `input_values` and maybe `attention_mask`, of the same shape."""
        return self._family.inputs(self._config, self._extractor, waveforms)


class Spectrogram(nn.Module):
    """Energy in bands: waveforms float32 (batch, num_samples) to (batch, bands, frames).

    linear: float64 (window, window), what is done to a frame before its Fourier transform. length: of the transform.
    bands: float64 (length // 2 + 1, bands), the weight of each frequency in each band. hop: samples.
    """

    kernels: torch.Tensor
    bands: torch.Tensor

    def __init__(self, linear: Doubles, length: int, bands: Doubles, hop: int) -> None:
        super().__init__()
        turns = np.outer(np.arange(length // 2 + 1), np.arange(len(linear))) * (2 * np.pi / length)
        kernels = np.concatenate([np.cos(turns), np.sin(turns)]) @ linear
        self.register_buffer("kernels", torch.from_numpy(kernels).float()[:, None], persistent=False)
        self.register_buffer("bands", torch.from_numpy(np.ascontiguousarray(bands.T)).float(), persistent=False)
        self.hop = hop

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """(batch, num_samples) -> (batch, bands, frames)."""
        parts = nn.functional.conv1d(waveforms[:, None], self.kernels, stride=self.hop).square()
        cosine, sine = parts.chunk(2, dim=1)
        energies: torch.Tensor = self.bands @ (cosine + sine)
        return energies


class LogMel(nn.Module):
    """As `WhisperFeatureExtractor` makes it (Radford et al. 2022): padded to its length, 80 dB below the loudest."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        extractor = classifier.extractor
        self.num_samples, self.reach = extractor.n_samples, extractor.n_fft // 2
        window = np.hanning(extractor.n_fft + 1)[:-1]
        self.spectrogram = Spectrogram(np.diag(window), extractor.n_fft, extractor.mel_filters, extractor.hop_length)

    def forward(self, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
        """Waveforms float32 (batch, num_samples) -> `input_features` float32 (batch, bands, frames)."""
        silence = waveforms.new_zeros(waveforms.shape[0], self.num_samples)
        clips = torch.cat([waveforms, silence], dim=1)[:, : self.num_samples]
        mirrored = [clips[:, 1 : self.reach + 1].flip(1), clips, clips[:, -self.reach - 1 : -1].flip(1)]
        energies = self.spectrogram(torch.cat(mirrored, dim=1))[:, :, :-1]
        logarithms = energies.clamp(min=1e-10).log10()
        loudest = logarithms.amax(dim=(1, 2), keepdim=True)
        return {"input_features": (torch.maximum(logarithms, loudest - 8.0) + 4.0) / 4.0}


class FilterBank(nn.Module):
    """Kaldi's logarithmic filter bank of 25 ms every 10 ms: (batch, num_samples) to (batch, frames, bands).

    window: float64 (400,). scale: 2**15 where the extractor counts in 16 bits, else 1.
    """

    def __init__(self, window: Doubles, bands: Doubles, scale: float) -> None:
        super().__init__()
        size = len(window)
        centred = np.eye(size) - 1 / size
        emphasised = np.eye(size) - PREEMPHASIS * np.eye(size, k=-1)
        emphasised[0, 0] = 1 - PREEMPHASIS
        self.spectrogram = Spectrogram(scale * np.diag(window) @ emphasised @ centred, 512, bands, 160)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """(batch, num_samples) -> (batch, frames, bands)."""
        energies: torch.Tensor = self.spectrogram(waveforms).transpose(1, 2)
        return energies.clamp(min=FLOOR).log()


class PaddedFilterBank(nn.Module):
    """As `ASTFeatureExtractor` makes it: cut or padded with zeros to its length, and standardised as AudioSet is."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        extractor = classifier.extractor
        self.bank = FilterBank(extractor.window, extractor.mel_filters, 1.0)
        self.frames = extractor.max_length
        self.mean = float(extractor.mean) if extractor.do_normalize else 0.0
        self.scale = 2 * float(extractor.std) if extractor.do_normalize else 1.0

    def forward(self, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
        """Waveforms float32 (batch, num_samples) -> `input_values` float32 (batch, max_length, bands)."""
        bank = self.bank(waveforms)
        padded = torch.cat([bank, bank.new_zeros(bank.shape[0], self.frames, bank.shape[2])], dim=1)
        return {"input_values": (padded[:, : self.frames] - self.mean) / self.scale}


class StandardisedFilterBank(nn.Module):
    """As `SeamlessM4TFeatureExtractor` makes it of each clip's sound: bands standardised over time, frames joined."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        extractor = classifier.extractor
        self.bank = FilterBank(extractor.window, extractor.mel_filters, 2.0**15)
        self.joined = extractor.stride
        self.least = classifier.family.least_samples(classifier.network.config)

    def forward(self, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
        """Waveforms float32 (batch, num_samples) -> `input_features` (batch, frames, bands) and `attention_mask`."""
        bank = self.bank(waveforms)
        bank = torch.cat([bank, bank.new_zeros(bank.shape[0], self.joined - 1, bank.shape[2])], dim=1)
        frames = bank.shape[1] // self.joined * self.joined
        mask = sound_mask(waveforms)
        samples = mask.masked_fill(mask.sum(dim=-1, keepdim=True) < self.least, 1).sum(dim=-1, keepdim=True)
        sounding = torch.arange(frames, device=bank.device) < (samples - 400) // 160 + 1
        valid, bank = sounding[:, :, None].float(), bank[:, :frames]
        count = valid.sum(dim=1, keepdim=True)
        centred = (bank - (bank * valid).sum(dim=1, keepdim=True) / count) * valid
        standardised = centred / torch.sqrt(centred.square().sum(dim=1, keepdim=True) / (count - 1) + 1e-7)
        return {
            "input_features": standardised.reshape(bank.shape[0], frames // self.joined, -1),
            "attention_mask": sounding[:, 1 :: self.joined].long(),
        }
