import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from small_network import UNCHANGED, Tones, quick
from transformers import Wav2Vec2FeatureExtractor

from kws.batches import Batch, balanced, in_order, mixed, moved, prefetched, shuffled, sound_mask, standardise
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
@given(arrays.arrays(np.float32, (3, 64), elements=st.floats(-1, 1, width=32)), st.integers(0, 2**32))
def test_moving_keeps_shape_and_kind_and_nothing_is_identity(waveforms: np.ndarray, seed: int) -> None:
    given_waveforms = torch.from_numpy(waveforms.copy())
    strong = Augmentation(max_shift=0.5, max_speed=0.5)
    changed = moved(given_waveforms, strong, np.random.default_rng(seed), 16_000)
    assert changed.shape == given_waveforms.shape
    assert changed.dtype == torch.float32
    assert changed.isfinite().all()
    assert torch.equal(moved(given_waveforms, UNCHANGED, np.random.default_rng(seed), 16_000), given_waveforms)
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
    shifted = moved(clicks, replace(UNCHANGED, max_shift=0.01), np.random.default_rng(0), 16_000)
    distances = shifted.abs().argmax(dim=1) - 800
    assert distances.abs().max() <= 161
    assert distances.min() < -100
    assert distances.max() > 100


class Watched(Tones):
    """Notes which clips are read, and by which thread."""

    def read(self, numbers: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        self.__dict__.setdefault("seen", []).append((numbers.tolist(), threading.current_thread()))
        return super().read(numbers, generator)


def test_noise_is_mixed_into_its_share_of_the_clips_at_the_ratio_asked_for_and_read_for_these_alone() -> None:
    generator = np.random.default_rng(0)
    sound = generator.normal(0, 0.1, (400, 1600)).astype(np.float32)
    clips = Watched(np.concatenate([sound, 5 * sound[:20]]), np.arange(420))
    noise = np.arange(400, 420)
    settings = replace(UNCHANGED, noise_probability=0.5, min_snr_db=5.0, max_snr_db=10.0)
    batches = list(shuffled(clips, 16, settings, noise, generator))
    order = torch.cat([batch.labels for batch in batches])
    before = torch.from_numpy(clips.waveforms)[order]
    added = torch.cat([batch.waveforms for batch in batches]) - before
    noisy = added.abs().amax(dim=1) > 1e-6
    assert 0.4 < noisy.float().mean() < 0.6
    ratio = 20 * torch.log10(before[noisy].square().mean(dim=1).sqrt() / added[noisy].square().mean(dim=1).sqrt())
    assert ratio.min() > 4.9
    assert ratio.max() < 10.1
    drawn = [numbers for numbers, _ in clips.seen[1::2]]  # every batch is read first, and then its noise
    assert sum(len(numbers) for numbers in drawn) == noisy.sum()
    assert {number for numbers in drawn for number in numbers} <= set(noise.tolist())


def test_noise_is_added_at_the_ratio() -> None:
    clips, noise = torch.full((2, 100), 0.5), torch.full((2, 100), 0.1)
    torch.testing.assert_close(mixed(clips, noise, torch.tensor([[20.0], [0.0]]))[:, 0], torch.tensor([0.55, 1.0]))
    assert torch.equal(mixed(clips, torch.zeros(2, 100), torch.zeros(2, 1)), clips)  # silence has no level to adjust


LABEL_LISTS = st.lists(st.sampled_from([0, 3, 11]), min_size=1, max_size=60).map(np.array)


@quick
@given(LABEL_LISTS, st.integers(0, 2**32))
def test_balanced_draws_are_valid_and_follow_the_generator(labels: np.ndarray, seed: int) -> None:
    drawn = balanced(labels, np.random.default_rng(seed))
    assert drawn.shape == labels.shape
    assert drawn.dtype == np.int64
    assert drawn.min() >= 0
    assert drawn.max() < len(labels)
    assert np.array_equal(drawn, balanced(labels, np.random.default_rng(seed)))


@quick
@given(LABEL_LISTS, st.integers(0, 2**32))
def test_balanced_draws_have_every_label_equally_often(labels: np.ndarray, seed: int) -> None:
    """Whatever the labels' shares, and whichever of them a site lacks: within six standard deviations."""
    many = np.repeat(labels, 2000 // len(labels) + 1)
    counts = Counter(many[balanced(many, np.random.default_rng(seed))].tolist())
    present = set(labels.tolist())
    assert counts.keys() <= present
    share = 1 / len(present)
    for label in present:
        assert abs(counts[label] - share * len(many)) <= 6 * np.sqrt(len(many) * share * (1 - share))


def test_balanced_draws_reach_every_clip_of_a_label_alike() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    generator = np.random.default_rng(0)
    counts = np.bincount(np.concatenate([balanced(labels, generator) for _ in range(2000)]), minlength=100)
    np.testing.assert_allclose(counts[:90], 100_000 / 90, rtol=0.15)
    np.testing.assert_allclose(counts[90:], 100_000 / 10, rtol=0.05)


def test_a_balanced_epoch_is_as_long_as_another_and_seeded() -> None:
    clips = Tones.make(30)

    def labels(seed: int) -> list[list[int]]:
        batches = shuffled(clips, 8, UNCHANGED, NONE, np.random.default_rng(seed), "balanced")
        return [batch.labels.tolist() for batch in batches]

    assert [len(batch) for batch in labels(0)] == [8, 8, 8, 6]
    assert labels(0) == labels(0)
    assert labels(0) != labels(1)


@pytest.mark.parametrize("sampling", ["all", "balanced"])
def test_prefetched_batches_are_the_same_and_come_from_a_thread_that_ends(sampling: str) -> None:
    def epoch(clips: Tones) -> Iterator[Batch]:
        noise = np.flatnonzero(clips.labels == 10)
        return shuffled(clips, 8, Augmentation(), noise, np.random.default_rng(3), sampling)

    made = Tones.make(100)
    watched = Watched(made.waveforms, made.labels)
    for here, there in zip(epoch(made), prefetched(epoch(watched)), strict=True):
        assert torch.equal(here.waveforms, there.waveforms)
        assert torch.equal(here.labels, there.labels)
    (thread,) = {thread for _, thread in watched.seen}
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_the_next_batch_is_prepared_while_one_is_in_use_and_no_more() -> None:
    made: list[int] = []
    second = threading.Event()

    def batches() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            if number == 1:
                second.set()
            yield number

    coming = prefetched(batches())  # type: ignore[arg-type]
    assert next(coming) == 0
    assert second.wait(10)
    assert made == [0, 1]
    assert list(coming) == [1, 2, 3, 4]


def test_the_thread_ends_with_a_loop_that_is_left_early() -> None:
    clips = Tones.make(40)
    watched = Watched(clips.waveforms, clips.labels)
    for _ in islice(prefetched(in_order(watched, 8)), 2):
        pass
    assert not any(thread.is_alive() for _, thread in watched.seen)
    assert len(watched.seen) == 3


def test_an_error_in_the_thread_reaches_the_loop_in_its_place() -> None:
    def batches() -> Iterator[Batch]:
        yield from in_order(Tones.make(16), 8)
        raise ValueError("broken.wav")

    coming, threads = prefetched(batches()), threading.active_count()
    assert len(list(islice(coming, 2))) == 2
    with pytest.raises(ValueError, match=r"broken\.wav"):
        next(coming)
    assert threading.active_count() == threads


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
