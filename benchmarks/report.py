"""The tables: in Markdown, as docs/benchmarks.md shows them."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from crowd import AT_ONCE, longest, seconds
from many import Cost
from measure import Figures
from scaling import Line

TITLES = {
    "openfl": "OpenFL 1.6",
    "flower": "Flower 1.42",
    "nvflare": "NVIDIA FLARE 2.9",
    "ours": "this project",
    "floor": "floor",
}
"""The systems, in the order of the table's columns."""

Runs = dict[str, Figures]


def comparison(small: Runs, large: Runs) -> str:
    """A row for each figure and a column for each system, measured with a small and a large model.

    A system without a large run gets dashes there. Memory is given as the peak, and as the growth of the peak from the
    small to the large model, in models: how many copies a process holds.
    """
    some = next(iter(large.values()))
    little = next(iter(small.values()))
    size, small_size = f"{some.model_bytes / 1e6:.0f} MB", f"{little.model_bytes / 1e6:.0f} MB"

    def row(title: str, runs: Runs, text: Callable[[Figures], str]) -> list[str]:
        return [title, *(text(runs[name]) if name in runs else "–" for name in TITLES)]

    def ratio(runs: Runs) -> Callable[[Figures], str]:
        floor = runs.get("floor")
        return lambda run: f"{run.seconds / floor.seconds:.1f}" if floor else "–"

    def held(peak: Callable[[Figures], int]) -> Callable[[Figures], str]:
        return lambda run: f"{_held(peak(small[run.system]), peak(run), small[run.system], run):.1f}"

    rows = [
        row(f"round of {size}, s", large, _rounds),
        row("… times the floor", large, ratio(large)),
        row("… through sockets, MB", large, lambda run: _known(run.wire, lambda wire: f"{wire / 1e6:.0f}")),
        row("… in models", large, lambda run: _known(run.copies, lambda copies: f"{copies:.1f}")),
        row("… CPU, s", large, lambda run: f"{run.cpu:.1f}"),
        row("server, peak MB", large, lambda run: f"{run.server / 1e6:.0f}"),
        row("server, models held", large, held(lambda run: run.server)),
        row("site, peak MB", large, lambda run: f"{run.site / 1e6:.0f}"),
        row("site, models held", large, held(lambda run: run.site)),
        row(f"round of {small_size}, s", small, _rounds),
        row("largest error", small | large, lambda run: f"{run.difference:.0e}"),
    ]
    return table(["", *TITLES.values()], rows)


def goals(small: Runs, large: Runs) -> str:
    """What this project sets out to be, as figures; and the peers' figures over this project's."""
    ours = large["ours"]
    rows = []
    if "floor" in large:
        rows.append(_goal("round, times the floor", ours.seconds / large["floor"].seconds, 2))
    rows.append(_goal("director, peak MB", ours.server / 1e6, 2.5 * ours.model_bytes / 1e6 + 500))
    rows.append(_goal("site, models held", _held(small["ours"].site, ours.site, small["ours"], ours), 2))
    for name in ("flower", "nvflare"):
        if name not in large:
            continue
        peer = large[name]
        ratios = {"time": peer.seconds / ours.seconds, "CPU": peer.cpu / ours.cpu}
        ratios |= {"server's memory": peer.server / ours.server, "site's memory": peer.site / ours.site}
        if peer.wire and ours.wire:
            ratios["bytes"] = peer.wire / ours.wire
        rows += [_goal(f"{TITLES[name]}'s {what} over ours", ratio, 1, more=True) for what, ratio in ratios.items()]
    return table(["goal", "measured", "wanted", ""], rows)


def director_memory(model_bytes: int, peaks: Mapping[int, int]) -> str:
    """The director's peak by the number of sites, held to its limit."""
    limit = 2.5 * model_bytes / 1e6 + 500
    rows = [_goal(f"director, peak MB, {sites} sites", peak / 1e6, limit) for sites, peak in peaks.items()]
    return table([f"model of {model_bytes / 1e6:.0f} MB", "measured", "wanted", ""], rows)


def scaling(lines: Mapping[str, Line], sites: Line) -> str:
    """The measured points and their lines."""
    rows = [[f"{TITLES[name]}, two sites", *_line(line, "MB", "MB")] for name, line in lines.items()]
    rows.append(["this project, 0.5 MB", *_line(sites, "sites", "site")])
    return table(["", "seconds a round", "line", "R²", "farthest point"], rows)


def crowd(costs: Sequence[Cost]) -> str:
    """What a round costs a director, by the number of its sites, and the goals of the largest."""
    rows = [
        [
            str(each.sites), f"{seconds(each):.2f} ({min(each.rounds):.2f}–{max(each.rounds):.2f})",
            f"{each.milliseconds:.1f}", f"{each.memory / 1e6:.0f}", str(each.files), f"{longest(each, AT_ONCE):.2f}",
            f"{longest(each, ('model', 'update')):.2f}",
        ]
        for each in costs
    ]  # fmt: skip
    head = [
        "sites",
        "round, s",
        "CPU, ms a site and round",
        "peak MB",
        "open files",
        "longest call, s",
        "with a turn",
    ]
    most = costs[-1]
    held = [
        _goal(f"round of {most.sites} sites, s", seconds(most), 30),
        _goal("director's CPU, ms a site and round", most.milliseconds, 5),
        _goal("director, peak MB", most.memory / 1e6, 600),
        _goal("longest call that waits for nothing, s", longest(most, AT_ONCE), 1),
    ]
    return f"{table(head, rows)}\n\n{table(['goal', 'measured', 'wanted', ''], held)}"


def clock(measured: Mapping[str, float]) -> str:
    """What a federation without work to do waits for."""
    titles = {
        "round": ("a round of 0.5 MB without training", "0.5"),
        "start": ("submission until every envoy starts its trainer", "1"),
        "first_task": ("submission until every site has the first model", "–"),
        "end": ("last work at a site until the notebook knows of the end", "1"),
    }
    rows = [[title, f"{measured[name]:.2f}", limit] for name, (title, limit) in titles.items()]
    return table(["", "seconds", "at most"], rows)


def data(figures: Mapping[str, Any]) -> str:
    """What the data layer costs, held to what it may cost; medians, with the least and the most in brackets."""
    listing, packing, epochs = figures["listing"], figures["packing"], figures["epochs"]
    library = [ours / bare for ours, bare in zip(figures["decoding"]["ours"], figures["decoding"]["bare"], strict=True)]
    first, *later = epochs["epochs"]["packed"]
    reading = [100 * read / whole for read, whole in zip(epochs["read"][1:], later, strict=True)]
    beside = {
        kind: [own / other for own, other in zip(later, epochs["epochs"][kind][1:], strict=True)]
        for kind in ("memory", "decoded")
    }
    memory = list(figures["memory"].values())
    megabytes = packing["bytes"] / 1e6
    rows = [
        _held_to("whole process that lists and shares out, s", [each["seconds"] for each in listing], 2),
        _held_to("… its peak, MB", [each["peak"] / 1e6 for each in listing], 300),
        _held_to("decoding, clips/s", figures["decoding"]["ours"], 3000, more=True),
        _held_to("… over soundfile.read alone", library),
        _held_to(f"packing {packing['clips']} clips ({megabytes:.0f} MB), s", [packing["pack"]]),
        _held_to("opening them again, s", packing["open"]),
        _held_to("reading in batches of 16, clips/s", figures["reading"]["rates"]),
        _held_to(f"first epoch of {epochs['clips']} clips, packing and reading, %", [100 * epochs["read"][0] / first]),
        _held_to("later epochs, reading, %", reading, 3),
        _held_to("… time over clips in memory", beside["memory"], 1.03),
        _held_to("… time over clips decoded each time", beside["decoded"]),
        _held_to("… shuffling, reading and augmentation, %", [100 * epochs["prepare"] / median(later)]),
        *(
            _held_to(f"anonymous memory, {each['clips']} clips, MB", [each["anonymous"] / 1e6], limit)
            for each, limit in zip(memory, [None, None, memory[0]["anonymous"] / 1e6 + 10], strict=True)
        ),
    ]
    return f"{figures['machine']}, {listing[0]['utterances']} utterances\n\n" + table(
        ["", "measured", "wanted", ""], rows
    )


LOOPS = {"bare": "bare PyTorch loop", "ours": "this project", "trainer": "Trainer of Transformers"}


def training(figures: Mapping[str, Any]) -> str:
    """What one site's training costs beside a bare loop and the library's; medians, with least and most in brackets."""
    times, memory, clips = figures["times"], figures["memory"], figures["steps"] * figures["batch"]

    def over(name: str, other: str) -> list[float]:
        return [one / two for one, two in zip(times[name], times[other], strict=True)]

    rows = [_held_to(f"{title}, clips/s", [clips / each for each in times[loop]]) for loop, title in LOOPS.items()]
    rows += [
        _held_to("this project's time over the bare loop's", over("ours", "bare"), 1.1),
        _held_to("… over the Trainer's", over("ours", "trainer"), 1.0),
        _held_to("… with every clip changed at random, over the bare loop's without", over("augmented", "bare")),
        *(_held_to(f"{title}, peak MB", [memory[loop] / 1e6]) for loop, title in LOOPS.items()),
        _held_to("this project's peak over the bare loop's", [memory["ours"] / memory["bare"]], 1.1),
    ]
    network = "wav2vec2-base, random weights, all trained" if figures["size"] == "base" else figures["size"]
    losses = ", ".join(f"{loss:.4f}" for name, loss in figures["losses"].items() if name in LOOPS)
    return (
        f"{figures['machine']}; {network}; batches of {figures['batch']}, {figures['steps']} steps at a time; "
        f"mean losses of the first: {losses}\n\n" + table(["", "measured", "wanted", ""], rows)
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, columns aligned.

    >>> print(table(["", "a"], [["long", "1"]]))
    |      | a |
    |------|---|
    | long | 1 |
    """
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
             for row in [head, *rows]]  # fmt: skip
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _held(before: int, after: int, small: Figures, large: Figures) -> float:
    return (after - before) / (large.model_bytes - small.model_bytes)


def _goal(what: str, measured: float, limit: float, more: bool = False) -> list[str]:
    met = measured > limit if more else measured <= limit
    digits = 0 if limit >= 100 else 2
    return [what, f"{measured:.{digits}f}", f"{'above' if more else 'at most'} {limit:.0f}", "yes" if met else "no"]


def _held_to(what: str, values: Sequence[float], limit: float | None = None, more: bool = False) -> list[str]:
    """A row of the median, with the spread of several values, and whether it keeps a limit.

    >>> _held_to("time, s", [1.25], 2)
    ['time, s', '1.25', 'at most 2', 'yes']
    """
    middle = median(values)
    digits = 0 if middle >= 1000 else 1 if middle >= 10 else 2
    measured = f"{middle:.{digits}f}"
    if len(values) > 1:
        measured += f" ({min(values):.{digits}f}–{max(values):.{digits}f})"
    if limit is None:
        return [what, measured, "–", ""]
    met = middle > limit if more else middle <= limit
    return [what, measured, f"{'above' if more else 'at most'} {limit:.4g}", "yes" if met else "no"]


def _rounds(run: Figures) -> str:
    """The median round, and the fastest and the slowest."""
    return f"{run.seconds:.2f} ({min(run.rounds):.2f}–{max(run.rounds):.2f})"


def _line(line: Line, units: str, unit: str) -> list[str]:
    points = ", ".join(f"{seconds:.2f} at {x:.0f}" for x, seconds in zip(line.x, line.seconds, strict=True))
    return [
        f"{points} {units}",
        f"{line.fixed:.2f} s + {1000 * line.slope:.1f} ms/{unit}",
        f"{line.r_squared:.3f}",
        f"{100 * line.worst:.0f} % off",
    ]


def _known(value: float | None, text: Callable[[float], str]) -> str:
    return "not measured" if value is None else text(value)
