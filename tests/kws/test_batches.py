import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_network import UNCHANGED, Tones, plain, quick

from kws.batches import Batch, Heard, balanced, digest, epoch, hearings, in_order, prefetched, steps, steps_in_epoch
from kws.config import Augmentation, Training
from kws.sound import drawn


def numbered(count: int) -> Tones:
    """Clip number n is n + 1 throughout, and its label is n."""
    return Tones(np.repeat(np.arange(1, count + 1, dtype=np.float32)[:, None], 8, axis=1), np.arange(count))


def labels_of(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.labels for batch in batches]).tolist()


def waveforms_of(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.inputs["waveforms"] for batch in batches])


SIZES = {"count": st.integers(1, 40), "size": st.integers(1, 16), "accumulation": st.integers(1, 3)}


@quick
@given(seed=st.integers(0, 2**32 - 1), **SIZES)
def test_every_clip_exactly_once_an_epoch_with_its_own_label(
    count: int, size: int, accumulation: int, seed: int
) -> None:
    clips, training = numbered(count), plain(batch_size=size, accumulation=accumulation, seed=seed)
    made = list(steps(Heard(clips), training, 0, steps_in_epoch(training, count)))
    batches = [batch for step in made for batch in step]
    assert all(len(step) == accumulation for step in made[:-1])
    assert all(len(batch.labels) == size for batch in batches[:-1])
    assert Counter(labels_of(batches)) == Counter(range(count))
    assert (waveforms_of(batches) == torch.tensor(labels_of(batches))[:, None] + 1).all()
    one_by_one = list(in_order(Heard(clips), size))
    assert labels_of(one_by_one) == list(range(count))


@quick
@given(cuts=st.lists(st.integers(0, 60), max_size=6), **SIZES)
def test_any_cut_of_the_steps_is_the_same_training(cuts: list[int], count: int, size: int, accumulation: int) -> None:
    """Rounds of any length go on where the last one stopped, without a state, and hear every clip equally often."""
    heard = Heard(Tones.make(count), Augmentation())
    training = plain(batch_size=size, accumulation=accumulation)
    edges = sorted({0, 60, *cuts})
    whole = [batch for step in steps(heard, training, 0, 60) for batch in step]
    parts = [batch for first, last in pairwise(edges) for step in steps(heard, training, first, last) for batch in step]
    assert labels_of(parts) == labels_of(whole)
    assert torch.equal(waveforms_of(parts), waveforms_of(whole))


def order(count: int = 40, number: int = 0, **changes: object) -> list[int]:
    return epoch(Heard(numbered(count)), plain(**changes), number)[0].tolist()


def test_the_order_is_random_by_seed_and_epoch() -> None:
    assert order() == order()
    assert order() != sorted(order())
    assert order() != order(seed=1)
    assert order() != order(number=1)


def test_sites_with_other_clips_draw_otherwise() -> None:
    """Whatever they call their recordings, and though each of them may be "shard 1 of 1"."""
    generator = np.random.default_rng(0)
    keys = generator.integers(0, 2**64, (50, 20), dtype=np.uint64)
    sites = [digest(site) for site in (*keys, keys[0, :-1], keys.reshape(-1))]
    assert len(set(sites)) == len(sites)
    assert digest(keys[0]) == digest(generator.permutation(keys[0]))
    north, south = (Tones.make(40, seed=seed) for seed in (0, 1))
    assert epoch(Heard(north), plain(), 0)[0].tolist() != epoch(Heard(south), plain(), 0)[0].tolist()


class Watched(Tones):
    """Notes which clips are read, and by which thread."""

    def read(self, numbers: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
        self.__dict__.setdefault("seen", []).append((numbers.tolist(), threading.current_thread()))
        return super().read(numbers, places)


def test_what_a_clip_sounds_like_depends_on_no_batch_and_no_site() -> None:
    """Its n-th hearing is the same to the bit among all clips, in small batches, and at a site with half of them."""
    everything = Tones.make(60)
    without_noise = Augmentation(noise_probability=0.0)  # what is mixed in is the site's own silence

    def heard(clips: Tones, number: int, **changes: object) -> dict[int, torch.Tensor]:
        training = plain(**changes)
        count = steps_in_epoch(training, len(clips))
        made = list(steps(Heard(clips, without_noise), training, number * count, (number + 1) * count))
        waveforms = waveforms_of([batch for step in made for batch in step])
        return dict(zip(clips.keys[epoch(Heard(clips), training, number)[0]].tolist(), waveforms, strict=True))

    half = Tones(everything.waveforms[10:40], everything.labels[10:40])
    first = heard(everything, 0)
    for other in (heard(everything, 0, batch_size=7, accumulation=2), heard(half, 0, batch_size=1)):
        assert all(torch.equal(waveform, first[key]) for key, waveform in other.items())
    for other in (heard(everything, 1), heard(everything, 0, seed=1)):
        assert not any(torch.equal(waveform, first[key]) for key, waveform in other.items())


@quick
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 2**32 - 1), st.integers(0, 10**6))
def test_every_hearing_has_a_key_of_its_own_whatever_is_heard_beside_it(
    clips: list[int], seed: int, number: int
) -> None:
    keys = hearings(np.array(clips, dtype=np.uint64), seed, number)
    assert len(set(keys.tolist())) == len(clips)
    again = hearings(np.array([9, *clips], dtype=np.uint64), seed, number)
    assert again[1:].tolist() == keys.tolist()


def test_the_numbers_drawn_are_even_and_independent() -> None:
    generator = np.random.default_rng(0)
    many = hearings(generator.integers(0, 2**64, 20_000, dtype=np.uint64), 0, 0)
    numbers = drawn(many, 7)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.apply_along_axis(lambda column: np.histogram(column, 20, (0, 1))[0], 0, numbers)
    np.testing.assert_allclose(counts, 1000, atol=6 * np.sqrt(1000))
    later = drawn(hearings(many, 0, 1), 7)
    correlations = np.corrcoef(np.hstack([numbers, later]), rowvar=False) - np.eye(14)
    assert np.abs(correlations).max() < 6 / np.sqrt(20_000)
    assert drawn(many[:2], 3).tolist() == drawn(many[:2], 7)[:, :3].tolist()


def test_noise_is_mixed_into_its_share_of_the_clips_at_the_ratio_asked_for_and_read_for_these_alone() -> None:
    generator = np.random.default_rng(0)
    sound = generator.normal(0, 0.1, (400, 1600)).astype(np.float32)
    labels = np.array([0] * 400 + [10] * 20)  # 10 is silence
    clips = Watched(np.concatenate([sound, 5 * sound[:20]]), labels)
    settings = replace(UNCHANGED, noise_probability=0.5, min_snr_db=5.0, max_snr_db=10.0)
    training = plain(batch_size=16)
    order, _ = epoch(Heard(clips), training, 0)
    batches = [batch for step in steps(Heard(clips, settings), training, 0, 27) for batch in step]
    before = torch.from_numpy(clips.waveforms)[order]
    added = waveforms_of(batches) - before
    noisy = added.abs().amax(dim=1) > 1e-6
    assert 0.4 < noisy.float().mean() < 0.6
    ratio = 20 * torch.log10(before[noisy].square().mean(dim=1).sqrt() / added[noisy].square().mean(dim=1).sqrt())
    assert ratio.min() > 4.9
    assert ratio.max() < 10.1
    read = [numbers for numbers, _ in clips.seen[1::2]]  # every batch is read first, and then its noise
    assert sum(len(numbers) for numbers in read) == noisy.sum()
    assert set(range(400, 420)) >= {number for numbers in read for number in numbers} > {400, 419}


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
    def labels(seed: int) -> list[list[int]]:
        training = plain(sampling="balanced", seed=seed)
        made = steps(Heard(Tones.make(30)), training, 0, steps_in_epoch(training, 30))
        return [batch.labels.tolist() for step in made for batch in step]

    assert [len(batch) for batch in labels(0)] == [8, 8, 8, 6]
    assert labels(0) == labels(0)
    assert labels(0) != labels(1)


def test_a_clip_that_is_drawn_twice_sounds_otherwise_the_second_time() -> None:
    clips = Tones.make(3)
    training = plain(sampling="balanced", batch_size=3)
    heard = waveforms_of([batch for step in steps(Heard(clips, Augmentation()), training, 0, 20) for batch in step])
    assert len(torch.unique(heard, dim=0)) == 60


@pytest.mark.parametrize("sampling", ["all", "balanced"])
def test_prefetched_batches_are_the_same_and_come_from_a_thread_that_ends(sampling: str) -> None:
    def some(clips: Tones) -> Iterator[list[Batch]]:
        return steps(Heard(clips, Augmentation()), Training(batch_size=8, sampling=sampling), 0, 13)

    made = Tones.make(100)
    watched = Watched(made.waveforms, made.labels)
    for (here,), (there,) in zip(some(made), prefetched(some(watched)), strict=True):
        assert torch.equal(here.inputs["waveforms"], there.inputs["waveforms"])
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

    coming = prefetched(batches())
    assert next(coming) == 0
    assert second.wait(10)
    assert made == [0, 1]
    assert list(coming) == [1, 2, 3, 4]


def test_the_thread_ends_with_a_loop_that_is_left_early() -> None:
    clips = Tones.make(40)
    watched = Watched(clips.waveforms, clips.labels)
    for _ in islice(prefetched(in_order(Heard(watched), 8)), 2):
        pass
    assert not any(thread.is_alive() for _, thread in watched.seen)
    assert len(watched.seen) == 3


def test_an_error_in_the_thread_reaches_the_loop_in_its_place() -> None:
    def batches() -> Iterator[Batch]:
        yield from in_order(Heard(Tones.make(16)), 8)
        raise ValueError("broken.wav")

    coming, threads = prefetched(batches()), threading.active_count()
    assert len(list(islice(coming, 2))) == 2
    with pytest.raises(ValueError, match=r"broken\.wav"):
        next(coming)
    assert threading.active_count() == threads
