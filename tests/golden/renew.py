"""`python tests/golden/renew.py`: the golden curves as today's code computes them, beside those that are kept.

With `--because REASON` the new ones are kept. docs/numerics.md says when a curve may be renewed.
"""

import argparse
import sys
import tempfile
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(HOUSE), str(HOUSE / "tests")]  # the house first: tests/ has folders of the same names

import golden_curve  # noqa: E402
import torch  # noqa: E402
from golden_curve import Golden  # noqa: E402


def main(arguments: list[str] | None = None, folder: Path = golden_curve.HERE) -> None:
    """Renew what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--because", help="why the numerics may differ; kept beside the curve")
    parser.add_argument("--kind", choices=golden_curve.KINDS, action="append", help="only this one; repeatable")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        for kind in options.kind or golden_curve.KINDS:
            corpus = golden_curve.corpus_of(kind, Path(made))
            if corpus is None:
                print(f"{kind}: no such recordings here; set DATA to a folder that holds speech_commands_v0.01")
                continue
            rows = golden_curve.chosen(corpus)
            old = golden_curve.load(kind, folder) if golden_curve.path_of(kind, folder).exists() else None
            before = old.losses if old else ()
            new = tuple(golden_curve.curve(rows))
            print(f"\n{kind}\n{golden_curve.side_by_side(before, new)}")
            if old:
                print(f"largest relative difference: {golden_curve.largest_difference(before, new):.1e}")
            if options.because:
                clips = tuple((row.name, row.start) for row in rows)
                sound, versions = golden_curve.sound(rows), golden_curve.made_with()
                golden = Golden(clips, sound, new, versions, options.because, before)
                golden_curve.save(golden, kind, folder)
                print(f"kept in {golden_curve.path_of(kind, folder)}")
    if not options.because:
        print("\nnothing was written; --because TEXT keeps the new curves")


if __name__ == "__main__":
    main()
