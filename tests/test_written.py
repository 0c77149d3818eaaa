"""What the pages, the settings and the sources name is there: after a move, too."""

from pathlib import Path

import pytest
from test_imports import MODULES
from written import HOUSE, LIES_IN, dotted, exists, prose

TEXTS = [
    HOUSE / "README.md",
    *sorted((HOUSE / "docs").glob("*.md")),
    *sorted(HOUSE.glob("*/*.yaml")),
    *sorted((HOUSE / "benchmarks").rglob("*.py")),
    *MODULES.values(),
]
OTHERS = {
    "federation.attach",  # in a notebook `federation` is a FederationHandle
    "federation.Models",  # a service of gRPC
    "federation.rules",  # a group of entry points
    "federation.cuda_monitor.CudaMonitor",  # where it was; who still names it is told
}
"""What looks like a name of the house and is none. (CHANGELOG.md and DECISIONS.md tell what was.)"""


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(HOUSE)))
def test_every_dotted_name_exists(path: Path) -> None:
    missing = [
        f"{path}:{line}: {name}" for name, line in dotted(prose(path)) if name not in OTHERS and not exists(name)
    ]
    assert not missing, "there is no such thing (moved?):\n" + "\n".join(missing)


def test_the_check_can_fail(tmp_path: Path) -> None:
    for name in (
        "federation.aggregator", "federation.site.review.no", "kws.plots", "lab.demo.Services.fly", "lab.cli.app.x",
    ):  # fmt: skip
        assert not exists(name)
    for name in (
        "federation", "federation.site", "federation.site.review.Submission.digest", "kws.config.HEADS",
        "lab.demo.Services.start", "lab.cli.app", "shard_descriptors.utterances.Utterance.speaker",
        "federation.director.__main__", "federation.notebook.handle.FederationHandle",
    ):  # fmt: skip
        assert exists(name), name
    source = tmp_path / "source.py"
    source.write_text(
        '"""See `kws.old`,\nand lab.older."""\nfederation.sites()\n# kws.oldest\nx = "workspace/kws/a.py kws.f()"\n'
    )
    assert list(dotted(prose(source))) == [("kws.old", 1), ("lab.older", 2), ("kws.oldest", 4)]
    assert {name.split(".")[0] for name in MODULES} == set(LIES_IN)
