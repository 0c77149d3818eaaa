import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from small_network import quick
from transformers import Wav2Vec2FeatureExtractor

from kws.sound import mixed, moved, sound_mask, standardise


def columns(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


@quick
@given(
    arrays.arrays(np.float32, (3, 64), elements=st.floats(-1, 1, width=32)),
    st.lists(st.floats(0.5, 2), min_size=3, max_size=3),
    st.lists(st.floats(-70, 70), min_size=3, max_size=3),
)
def test_moving_keeps_shape_and_kind_and_nothing_is_identity(
    waveforms: np.ndarray, speeds: list[float], shifts: list[float]
) -> None:
    given_waveforms = torch.from_numpy(waveforms.copy())
    changed = moved(given_waveforms, columns(*speeds), columns(*shifts))
    assert changed.shape == given_waveforms.shape
    assert changed.dtype == torch.float32
    assert changed.isfinite().all()
    assert torch.equal(moved(given_waveforms, columns(1, 1, 1), columns(0, 0, 0)), given_waveforms)
    assert torch.equal(given_waveforms, torch.from_numpy(waveforms))


def test_a_shift_moves_the_sound_by_as_much_as_is_asked_for() -> None:
    clicks = torch.zeros(3, 1600)
    clicks[:, 800] = 1
    shifted = moved(clicks, columns(1, 1, 1), columns(-160, 0, 160))
    assert shifted.argmax(dim=1).tolist() == [960, 800, 640]
    assert shifted.sum(dim=1).tolist() == [1, 1, 1]


def test_faster_is_shorter_and_the_rest_is_silence() -> None:
    changed = moved(torch.ones(2, 1000), columns(1.25, 0.8), columns(0, 0))
    assert changed[0].count_nonzero() == pytest.approx(800, abs=1)
    assert changed[0, 500] == 1
    assert (changed[1] == 1).all()


def test_noise_is_added_at_the_ratio() -> None:
    clips, noise = torch.full((2, 100), 0.5), torch.full((2, 100), 0.1)
    torch.testing.assert_close(mixed(clips, noise, torch.tensor([[20.0], [0.0]]))[:, 0], torch.tensor([0.55, 1.0]))
    assert torch.equal(mixed(clips, torch.zeros(2, 100), torch.zeros(2, 1)), clips)  # silence has no level to adjust


def test_the_padding_of_a_short_word_is_not_its_level() -> None:
    word = torch.zeros(1, 1000)
    word[:, :200] = 0.5
    torch.testing.assert_close(mixed(word, torch.full((1, 1000), 0.1), columns(20))[0, -1], torch.tensor(0.05))


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
