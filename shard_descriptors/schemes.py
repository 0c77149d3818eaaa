"""The ways to share utterances out. To add one: a frozen dataclass with `assign`, and a line in `SCHEMES`.

Whole speakers (no speaker is on two sites): `Speakers`, `Clients`, `Quantity`; by another column: `Column`.
By utterance (speakers are torn apart, which a report on them must say): `Dirichlet`, `Pathological`, `Iid`.
No partition at all: `Own`.
"""

import hashlib
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np

from shard_descriptors.partition import Assignment, PartitionError, Scheme
from shard_descriptors.utterances import SPLITS, Utterance

Counts = dict[str, Counter[str]]
"""By split, the number of utterances of each group: a speaker, or a value of another column."""


@dataclass(frozen=True)
class Speakers(Scheme):
    """Whole speakers, with as many utterances in every shard as they allow: a natural-ID partition.

    In each split shards differ by at most its largest speaker. Shard n + 1 takes from the n before it what makes it
    their equal, and nothing else moves: one more site costs the others 1 in n + 1 of their utterances, the least there
    is. The seed decides who moves.
    Where nobody speaks: each file's clips are cut into consecutive blocks, one for each shard; files of one clip are
    dealt in turn.
    """

    keeps_speakers: ClassVar[bool] = True

    def assign(self, utterances: Sequence[Utterance], num_shards: int, seed: int) -> Assignment:
        """PartitionError when there are fewer train speakers than shards."""
        counts = _count(utterances, lambda u: u.speaker)
        _need_groups(counts, num_shards, "speakers")
        return _whole(utterances, lambda u: u.speaker, _grow(counts, num_shards, seed), num_shards)


@dataclass(frozen=True)
class Column(Scheme):
    """Whole values of a column, such as an accent or a microphone, dealt as `Speakers` deals speakers.

    column: its name; every utterance in which somebody speaks must have a value. Those without one, in which nobody
        speaks, are cut up as in `Speakers`.
    """

    column: str

    keeps_speakers: ClassVar[bool] = False

    def assign(self, utterances: Sequence[Utterance], num_shards: int, seed: int) -> Assignment:
        """PartitionError for a column that does not exist, and when it has fewer train values than shards."""
        if missing := [u for u in utterances if u.speaker is not None and u.column(self.column) is None]:
            known = sorted({name for u in utterances for name, _ in u.columns})
            raise PartitionError(
                f"{len(missing)} utterances, such as {missing[0].name}, have no {self.column!r}; "
                f"columns here: {', '.join(['label', 'speaker', *known])}"
            )
        counts = _count(utterances, self._value)
        _need_groups(counts, num_shards, f"values of {self.column!r}")
        return _whole(utterances, self._value, _grow(counts, num_shards, seed), num_shards)

    def natural_shards(self, utterances: Sequence[Utterance]) -> int | None:
        """One for each value in train."""
        return len(_count(utterances, self._value)["train"]) or None

    def _value(self, utterance: Utterance) -> str | None:
        return utterance.column(self.column)


@dataclass(frozen=True)
class Clients(Scheme):
    """Speakers as clients: every shard has the same number of train speakers, however much each has said.

    speakers_per_client: so many in each shard (fewer in the last); None: the speakers divided by the shards.
    Speakers of the other splits are dealt in turn, so that a shard may have none of them.
    """

    speakers_per_client: int | None = None

    keeps_speakers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the setting."""
        _check(self, speakers_per_client=lambda n: n is None or (isinstance(n, int) and n >= 1))

    def assign(self, utterances: Sequence[Utterance], num_shards: int, seed: int) -> Assignment:
        """PartitionError when the number of shards is not the one that the speakers make."""
        counts = _count(utterances, lambda u: u.speaker)
        _need_groups(counts, num_shards, "speakers")
        natural = self.natural_shards(utterances)
        if self.speakers_per_client and natural != num_shards:
            raise PartitionError(
                f"{len(counts['train'])} train speakers, {self.speakers_per_client} to a client, make {natural} "
                f"shards, not {num_shards}; ask for {natural} shards, or leave speakers_per_client out"
            )
        dealt: dict[str, int] = {}
        for split, groups in _by_first_split(counts, seed).items():
            for position, speaker in enumerate(groups):
                if split == "train" and self.speakers_per_client:
                    dealt[speaker] = position // self.speakers_per_client
                else:
                    dealt[speaker] = position * num_shards // len(groups)
        return _whole(utterances, lambda u: u.speaker, dealt, num_shards)

    def natural_shards(self, utterances: Sequence[Utterance]) -> int | None:
        """As many as the train speakers make, where it is said how many make one."""
        speakers = len(_count(utterances, lambda u: u.speaker)["train"])
        return math.ceil(speakers / self.speakers_per_client) if self.speakers_per_client else speakers or None


@dataclass(frozen=True)
class Quantity(Scheme):
    """Whole speakers, and shards of unequal size: shares of the utterances drawn from Dir(alpha), as in Li et al. 2022
    (Federated Learning on Non-IID Data Silos, quantity skew), the same in every split.

    alpha: concentration; small: few large shards and many small ones, large: all alike.
    """

    alpha: float = 1.0

    keeps_speakers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the setting."""
        _check(self, alpha=_positive)

    def assign(self, utterances: Sequence[Utterance], num_shards: int, seed: int) -> Assignment:
        """PartitionError when there are fewer train speakers than shards."""
        counts = _count(utterances, lambda u: u.speaker)
        _need_groups(counts, num_shards, "speakers")
        shares = np.random.default_rng(seed).dirichlet(np.full(num_shards, self.alpha))
        dealt: dict[str, int] = {}
        for split, groups in _by_first_split(counts, seed).items():
            size = counts[split]
            wanting = [-share * size.total() for share in shares]
            for speaker in size.keys() & dealt.keys():
                wanting[dealt[speaker]] += size[speaker]
            groups.sort(key=lambda speaker: size[speaker])  # a stable sort: the lot decides among equals
            # One of those who said least for every shard, since none may be empty; the others, from the one who said
            # most, to the shard that lacks most.
            for number, speaker in enumerate(groups[:num_shards]):
                dealt[speaker] = number
                wanting[number] += size[speaker]
            for speaker in reversed(groups[num_shards:]):
                number = min(range(num_shards), key=wanting.__getitem__)
                dealt[speaker] = number
                wanting[number] += size[speaker]
        return _whole(utterances, lambda u: u.speaker, dealt, num_shards)


@dataclass(frozen=True)
class Dirichlet(Scheme):
    """Label skew: each label's utterances are shared out in proportions drawn from Dir(alpha), by `flwr-datasets`.

    Source: Yurochkin et al. 2019 (Bayesian Nonparametric Federated Learning of Neural Networks). All splits are shared
    out together, so that a shard has about the same mixture of labels in each. Speakers are torn apart.

    alpha:          concentration; 0.1 leaves a shard few labels, 100 makes all alike.
    min_utterances: proportions are drawn again, ten times at most, until every shard has so many.
    """

    alpha: float = 0.5
    min_utterances: int = 10

    keeps_speakers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the settings."""
        _check(self, alpha=_positive, min_utterances=lambda n: isinstance(n, int) and n >= 1)

    def assign(self, utterances: Sequence[Utterance], num_shards: int, seed: int) -> Assignment:
        """PartitionError when no draw gives every shard enough."""
        from datasets import Dataset  # here, not above: it takes two seconds, which the other schemes do without
        from flwr_datasets.partitioner import DirichletPartitioner

        order = _shuffled(len(utterances), seed)
        partitioner = DirichletPartitioner(
            num_shards, "label", float(self.alpha), self.min_utterances, shuffle=False, seed=seed
        )
        partitioner.dataset = Dataset.from_dict({"label": [utterances[row].label for row in order], "row": order})
        assigned = np.empty(len(utterances), dtype=np.int64)
        try:
            with warnings.catch_warnings(action="ignore"):  # of every draw that is repeated
                for number in range(num_shards):
                    assigned[partitioner.load_partition(number)["row"]] = number
        except ValueError as error:
            raise PartitionError(
                f"alpha {self.alpha} leaves some of {num_shards} shards with fewer than {self.min_utterances} "
                f"utterances in every draw; give a larger alpha, fewer shards or fewer min_utterances"
            ) from error
        return assigned


@dataclass(frozen=True)
class Pathological(Scheme):
    """Every shard has exactly `labels_per_shard` labels: the extreme of label skew, after McMahan et al. 2017.

    Labels are dealt in turn, in an order drawn with the seed, and each label's utterances evenly among its shards.
    Speakers are torn apart.
    """

    labels_per_shard: int = 2

    keeps_speakers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the setting."""
        _check(self, labels_per_shard=lambda n: isinstance(n, int) and n >= 1)

    def assign(self, utterances: Sequence[Utterance], num_shards: int, seed: int) -> Assignment:
        """PartitionError when there are too few labels for one shard, or too few places for all labels."""
        labels = sorted({u.label for u in utterances if u.split == "train"})
        if self.labels_per_shard > len(labels) or self.labels_per_shard * num_shards < len(labels):
            raise PartitionError(
                f"{num_shards} shards with {self.labels_per_shard} labels each cannot hold {len(labels)} labels, each "
                f"at least once and none twice in a shard; allowed labels_per_shard here: "
                f"{math.ceil(len(labels) / num_shards)} to {len(labels)}"
            )
        turn = [labels[number] for number in _shuffled(len(labels), seed)]
        holders: defaultdict[str, list[int]] = defaultdict(list)
        for place in range(num_shards * self.labels_per_shard):
            holders[turn[place % len(labels)]].append(place // self.labels_per_shard)
        rows: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for row in _shuffled(len(utterances), seed):
            rows[utterances[row].split, utterances[row].label].append(row)
        assigned = np.empty(len(utterances), dtype=np.int64)
        for (split, label), own in rows.items():
            if label not in holders:
                raise PartitionError(f"the label {label!r} is in {split} and not in train; remove it or add to train")
            assigned[own] = np.array(holders[label])[_blocks(len(own), len(holders[label]))]
        return assigned


@dataclass(frozen=True)
class Iid(Scheme):
    """Utterances at random, the same number in every shard: the control. It LEAKS SPEAKERS: nearly everyone is on
    several sites, as in the row-by-stride partition of OpenFL's own tutorial.
    """

    keeps_speakers: ClassVar[bool] = False

    def assign(self, utterances: Sequence[Utterance], num_shards: int, seed: int) -> Assignment:
        """Every split by itself."""
        assigned = np.empty(len(utterances), dtype=np.int64)
        splits = np.array([SPLITS.index(u.split) for u in utterances])
        order = np.array(_shuffled(len(utterances), seed), dtype=np.int64)
        for split in range(len(SPLITS)):
            own = order[splits[order] == split]
            assigned[own] = _blocks(len(own), num_shards)
        return assigned


@dataclass(frozen=True)
class Own(Scheme):
    """No partition: all recordings here are this site's own. The deployment case."""

    keeps_speakers: ClassVar[bool] = True

    def assign(self, utterances: Sequence[Utterance], num_shards: int, seed: int) -> Assignment:
        """PartitionError for more than one shard."""
        if num_shards != 1:
            raise PartitionError(
                f"a site's own recordings are not shared out, and `of` is {num_shards}; leave `shard` and `of` out"
            )
        return np.zeros(len(utterances), dtype=np.int64)

    def natural_shards(self, utterances: Sequence[Utterance]) -> int | None:
        """One."""
        return 1


SCHEMES: dict[str, type[Scheme]] = {
    "speakers": Speakers,
    "clients": Clients,
    "quantity": Quantity,
    "column": Column,
    "dirichlet": Dirichlet,
    "pathological": Pathological,
    "iid": Iid,
    "own": Own,
}
"""Schemes by the name that `envoy.yaml` and the command line use."""


def scheme_of(given: str | Mapping[str, Any]) -> Scheme:
    """The scheme of a name, or of a mapping with `scheme` and its settings, as in `envoy.yaml`.

    >>> scheme_of({"scheme": "dirichlet", "alpha": 0.3})
    Dirichlet(alpha=0.3, min_utterances=10)

    PartitionError for a name, a setting or a value that is not allowed.
    """
    settings = {"scheme": given} if isinstance(given, str) else dict(given)
    name = settings.pop("scheme", None)
    if name not in SCHEMES:
        raise PartitionError(f"the partition scheme is {name!r}; allowed: {', '.join(SCHEMES)}")
    allowed = [field.name for field in fields(SCHEMES[name])]  # type: ignore[arg-type]
    if wrong := sorted(settings.keys() - set(allowed)):
        raise PartitionError(f"the scheme {name} has no setting {wrong[0]!r}; allowed: {', '.join(allowed) or 'none'}")
    try:
        return SCHEMES[name](**settings)
    except TypeError as error:
        raise PartitionError(f"the scheme {name} needs {', '.join(allowed)}") from error


def described(scheme: Scheme) -> dict[str, Any]:
    """The scheme as a mapping from which `scheme_of` makes it again."""
    name = next(name for name, kind in SCHEMES.items() if type(scheme) is kind)
    return {"scheme": name, **asdict(scheme)}  # type: ignore[call-overload]


def _check(scheme: Scheme, **allowed: Callable[[Any], bool]) -> None:
    for name, right in allowed.items():
        value = getattr(scheme, name)
        if not right(value):
            raise PartitionError(
                f"{name} is {value!r}; it must be {'a number' if right is _positive else 'a whole number'} above 0"
            )


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _count(utterances: Sequence[Utterance], group: Callable[[Utterance], str | None]) -> Counts:
    counts: Counts = {split: Counter() for split in SPLITS}
    for utterance in utterances:
        if (name := group(utterance)) is not None:
            counts[utterance.split][name] += 1
    return counts


def _need_groups(counts: Counts, num_shards: int, what: str) -> None:
    if len(counts["train"]) < num_shards:
        raise PartitionError(
            f"{len(counts['train'])} train {what} cannot fill {num_shards} shards; ask for fewer shards, or add "
            f"recordings"
        )


def _by_first_split(counts: Counts, seed: int) -> dict[str, list[str]]:
    """Groups in the order of their lots, each in the first split that has it."""
    seen: set[str] = set()
    groups = {}
    for split in SPLITS:
        groups[split] = sorted(counts[split].keys() - seen, key=lambda group: (_lot(seed, group), group))
        seen |= counts[split].keys()
    return groups


def _lot(seed: int, group: str) -> bytes:
    """The group's draw: any order that is the same everywhere, another one for another seed."""
    return hashlib.sha256(f"{seed} {group}".encode()).digest()


def _grow(counts: Counts, num_shards: int, seed: int) -> dict[str, int]:
    """Shard of each group, in as many steps as there are shards: each new one is filled from those before it."""
    groups = _by_first_split(counts, seed)
    home = {group: 0 for own in groups.values() for group in own}
    for newest in range(1, num_shards):
        for split in SPLITS:
            _fill(newest, groups[split], counts[split], home)
    return home


def _fill(newest: int, groups: Sequence[str], size: Counter[str], home: dict[str, int]) -> None:
    """Move groups to the newest shard, in place, until no move makes it and the group's old shard more alike."""
    loads = [0] * (newest + 1)
    for group, number in size.items():
        loads[home[group]] += number
    members: list[list[str]] = [[] for _ in range(newest)]
    for group in groups:
        if home[group] < newest:
            members[home[group]].append(group)

    def move(group: str) -> None:
        loads[home[group]] -= size[group]
        loads[newest] += size[group]
        home[group] = newest

    # Every old shard gives, in the order of their lots, whoever it can spare before it is as small as all should be.
    fair = sum(loads) / len(loads)
    for donor, own in enumerate(members):
        for group in own:
            if loads[donor] - size[group] >= fair:
                move(group)
    # Then those who said least, from the fullest shard on, as long as that makes two shards more alike.
    stayed = [sorted((g for g in own if home[g] < newest), key=lambda g: -size[g]) for own in members]
    while (giver := _fullest_giver(loads, stayed, size)) is not None:
        move(stayed[giver].pop())


def _fullest_giver(loads: Sequence[int], groups: Sequence[Sequence[str]], size: Counter[str]) -> int | None:
    """The fullest shard whose smallest group, its last, would bring it and the last shard closer together."""
    givers = [n for n, own in enumerate(groups) if own and size[own[-1]] < loads[n] - loads[-1]]
    return max(givers, key=loads.__getitem__, default=None)


def _whole(
    utterances: Sequence[Utterance],
    group: Callable[[Utterance], str | None],
    home: Mapping[str, int],
    num_shards: int,
) -> Assignment:
    """Groups to their homes, and files in which nobody speaks cut up."""
    files = _cut_files(utterances, num_shards)
    return np.array(
        [
            files[u.split, u.name, u.start] if (name := group(u)) is None else home[name]
            for u in utterances
        ],
        dtype=np.int64,
    )  # fmt: skip


def _cut_files(utterances: Sequence[Utterance], num_shards: int) -> dict[tuple[str, str, int], int]:
    """Shard of each (split, name, start) without a speaker."""
    starts: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for utterance in utterances:
        if utterance.speaker is None:
            starts[utterance.split, utterance.name].append(utterance.start)
    shards: dict[tuple[str, str, int], int] = {}
    turns: Counter[str] = Counter()
    for split, name in sorted(starts):
        clips = sorted(starts[split, name])
        for position, start in enumerate(clips):
            # Each file begins with the next shard, so that odd clips even out over the files.
            block = position * num_shards // len(clips)
            shards[split, name, start] = (block + turns[split]) % num_shards
        turns[split] += 1
    return shards


def _blocks(number: int, num_blocks: int) -> Assignment:
    """The block of each of `number` places: 0 .. num_blocks - 1, all of one size within one."""
    return np.arange(number, dtype=np.int64) * num_blocks // max(number, 1)


def _shuffled(number: int, seed: int) -> list[int]:
    order: list[int] = np.random.default_rng(seed).permutation(number).tolist()
    return order
