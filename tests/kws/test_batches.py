from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from small_network import UNCHANGED, Tones, quick
from transformers import Wav2Vec2FeatureExtractor

from kws.batches import augment, in_order, shuffled, sound_mask, standardise
from kws.config import Augmentation

NONE = np.array([], dtype=np.int64)


def numbered(count: int) -> Tones:
    """Clip number n is n + 1 throughout, and its label is n."""
    return Tones(np.repeat(np.arange(1, count + 1, dtype=np.float32)[:, None], 8, axis=1), np.arange(count))


@quick
@given(st.integers(1, 40), st.integers(1, 16), st.integers(0, 2**32), st.booleans())
def test_every_clip_exactly_once_with_its_own_label(count: int, size: int, seed: int, with_noise: bool) -> None:
    clips = numbered(count)
    noise = np.arange(count) if with_noise else NONE
    for batches in (
        list(in_order(clips, size)),
        list(shuffled(clips, size, UNCHANGED, noise, np.random.default_rng(seed))),
    ):
        assert all(len(batch.labels) == size for batch in batches[:-1])
        labels = torch.cat([batch.labels for batch in batches])
        waveforms = torch.cat([batch.waveforms for batch in batches])
        assert Counter(labels.tolist()) == Counter(range(count))
        assert (waveforms == (labels + 1)[:, None]).all()
    assert torch.cat([batch.labels for batch in in_order(clips, size)]).tolist() == list(range(count))


def test_the_same_generator_gives_the_same_batches_and_another_epoch_others() -> None:
    clips = Tones.make(40)
    noise = np.flatnonzero(clips.labels == 10)

    def epochs(seed: int) -> list[torch.Tensor]:
        generator = np.random.default_rng(seed)
        return [
            torch.cat([batch.waveforms for batch in shuffled(clips, 8, Augmentation(), noise, generator)])
            for _ in range(2)
        ]

    first, second = epochs(0)
    assert torch.equal(first, epochs(0)[0])
    assert torch.equal(second, epochs(0)[1])
    assert not torch.equal(first, second)
    assert not torch.equal(first, epochs(1)[0])


@quick
@given(
    arrays.arrays(np.float32, (3, 64), elements=st.floats(-1, 1, width=32)),
    arrays.arrays(np.float32, (3, 64), elements=st.floats(-1, 1, width=32)) | st.none(),
    st.integers(0, 2**32),
)
def test_augmentation_keeps_shape_and_kind_and_nothing_is_identity(
    waveforms: np.ndarray, noise: np.ndarray | None, seed: int
) -> None:
    given_waveforms = torch.from_numpy(waveforms.copy())
    strong = Augmentation(max_shift=0.5, max_speed=0.5, noise_probability=1.0)
    changed = augment(given_waveforms, noise, strong, np.random.default_rng(seed), 16_000)
    assert changed.shape == given_waveforms.shape
    assert changed.dtype == torch.float32
    assert changed.isfinite().all()
    assert torch.equal(augment(given_waveforms, noise, UNCHANGED, np.random.default_rng(seed), 16_000), given_waveforms)
    assert torch.equal(given_waveforms, torch.from_numpy(waveforms))


def test_the_order_is_random_and_follows_the_generator() -> None:
    def order(seed: int) -> list[int]:
        batches = shuffled(numbered(40), 8, UNCHANGED, NONE, np.random.default_rng(seed))
        return torch.cat([batch.labels for batch in batches]).tolist()

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != sorted(order(0))


def test_a_shift_moves_the_sound_by_no_more_than_allowed() -> None:
    clicks = torch.zeros(200, 1600)
    clicks[:, 800] = 1
    moved = augment(clicks, None, replace(UNCHANGED, max_shift=0.01), np.random.default_rng(0), 16_000)
    distances = moved.abs().argmax(dim=1) - 800
    assert distances.abs().max() <= 161
    assert distances.min() < -100
    assert distances.max() > 100


def test_noise_is_mixed_into_its_share_of_the_clips_at_the_ratio_asked_for() -> None:
    generator = np.random.default_rng(0)
    clips = torch.from_numpy(generator.normal(0, 0.1, (400, 400)).astype(np.float32))
    noise = generator.normal(0, 0.5, (400, 400)).astype(np.float32)
    settings = replace(UNCHANGED, noise_probability=0.5, min_snr_db=5.0, max_snr_db=10.0)
    added = augment(clips, noise, settings, generator, 16_000) - clips
    noisy = added.abs().amax(dim=1) > 1e-6
    assert 0.4 < noisy.float().mean() < 0.6
    ratio = 20 * torch.log10(clips[noisy].square().mean(dim=1).sqrt() / added[noisy].square().mean(dim=1).sqrt())
    assert ratio.min() > 4.9
    assert ratio.max() < 10.1


def test_standardise_is_what_the_feature_extractor_does() -> None:
    generator = np.random.default_rng(0)
    waveforms = generator.normal(0.2, [[0.01], [0.3], [0]], (3, 16_000)).astype(np.float32)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    theirs = extractor(list(waveforms), sampling_rate=16_000, return_tensors="pt")["input_values"]
    torch.testing.assert_close(standardise(torch.from_numpy(waveforms)), theirs, rtol=1e-4, atol=1e-4)


def test_standardise_with_a_mask_is_what_the_feature_extractor_does_with_padding() -> None:
    generator = np.random.default_rng(0)
    waveforms = [generator.normal(0.2, 0.1, length).astype(np.float32) for length in (1600, 900)]
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    theirs = extractor(waveforms, sampling_rate=16_000, return_tensors="pt", padding=True)
    padded = torch.zeros(2, 1600)
    for row, waveform in enumerate(waveforms):
        padded[row, : len(waveform)] = torch.from_numpy(waveform)
    mask = sound_mask(padded)
    assert torch.equal(mask, theirs["attention_mask"].long())
    torch.testing.assert_close(standardise(padded, mask), theirs["input_values"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("waveform", "expected"),
    [
        ([0.1, 0.2, 0.3], [1, 1, 1]),
        ([0.1, 0.2, 0.0], [1, 1, 0]),
        ([0.0, -0.2, 0.0], [1, 1, 0]),
        ([0.1, 0.0, 0.2], [1, 1, 1]),
        ([0.1, -0.1, 0.0], [1, 1, 0]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
    ],
)
def test_sound_mask_ends_with_the_last_sound(waveform: list[float], expected: list[int]) -> None:
    mask = sound_mask(torch.tensor([waveform, [1.0, 1.0, 1.0]]))
    assert mask.tolist() == [expected, [1, 1, 1]]
    assert mask.dtype == torch.int64
