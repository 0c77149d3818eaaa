"""Who may import whom, and why: the table below. Who needs the engine, and that everybody else does without it."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[1]
PACKAGES = {
    "federation": HOUSE / "federation",
    "kws": HOUSE / "workspace" / "kws",
    "lab": HOUSE / "workspace" / "lab",
    "rules": HOUSE / "rules",
    "shard_descriptors": HOUSE / "shard_descriptors",
}
"""The house's packages and where they lie. A new one gets a line here and its rules in `RULES`."""

SPEECH = ("kws", "lab", "shard_descriptors")
LEARNING = ("torch", "transformers", "sklearn")


@dataclass(frozen=True)
class Rule:
    """Who never imports whom.

    A name is a module or a package with everything in it; `federation.*` are the modules in `federation` itself. `but`
    are the exceptions: a module, and what it may import all the same.
    """

    who: str
    never: tuple[str, ...]
    why: str
    but: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


COMMANDS = {
    "federation.envoy": ("federation.site",),
    "federation.review": ("federation.site", "federation.wire"),
    "federation.certificates": (),
}
"""The commands in `federation` itself, and the room that each one is the door of (a director's is in its room)."""

RULES = (
    Rule(
        "federation.site",
        ("federation.director", "federation.notebook"),
        "what runs beside the recordings is read by their owner, who should not have to read the other machines' code",
    ),
    Rule(
        "federation.director",
        ("federation.site", "federation.notebook"),
        "a director knows of a site what the site sends, and nothing of how it comes about; both may change alone",
    ),
    Rule(
        "federation.notebook",
        ("federation.site", "federation.director"),
        "the experimenter has neither recordings nor a director on this machine",
    ),
    Rule(
        "federation.wire",
        ("federation.site", "federation.director", "federation.notebook"),
        "both ends build on the wire: if it built on one of them, the other one would have it too",
    ),
    Rule(
        "federation.*",
        ("federation.site", "federation.director", "federation.notebook", "federation.wire"),
        "what no room owns is the ground floor; settings share with the wire which names are allowed",
        but=COMMANDS | {"federation.settings": ("federation.wire.names",)},
    ),
    Rule(
        "federation",
        (*SPEECH, *LEARNING, "soundfile", "librosa", "datasets"),
        "it federates whatever an experiment brings: models are arrays by name, recordings are the descriptor's affair",
    ),
    Rule(
        "kws",
        ("lab", "federation"),
        "it travels to the sites, where there is no lab, and their owners read the whole of it; how it trains does not "
        "depend on who carries it",
    ),
    Rule(
        "lab",
        ("federation",),
        "everything but submitting works without a federation: simulation, baselines, plots of a finished run",
        but={"lab.submission": ("federation",)},
    ),
    Rule("lab", ("openfl",), "the experimenter talks to the federation, the federation to the engine"),
    Rule(
        "kws",
        ("openfl",),
        "training is plain PyTorch, so that simulation and federation run the same lines; the tasks translate",
        but={"kws.tasks": ("openfl",)},
    ),
    Rule(
        "shard_descriptors",
        ("openfl",),
        "a corpus is listed, partitioned and read without a federation; the descriptor translates",
        but={"shard_descriptors.descriptor": ("openfl",)},
    ),
    Rule(
        "shard_descriptors",
        ("kws", "lab", "federation", *LEARNING),
        "what is recorded does not depend on what is learned from it, and an envoy that waits needs no PyTorch",
    ),
    Rule(
        "rules",
        ("openfl", "federation", *SPEECH, *LEARNING),
        "director, simulation and notebook share them; they know arrays and numbers only",
    ),
    Rule(
        "shard_descriptors.sources",
        ("shard_descriptors.partition",),
        "a source says what was recorded; who holds which part is decided afterwards, the same way for every source",
    ),
    Rule(
        "shard_descriptors.partition",
        ("shard_descriptors.sources", "shard_descriptors.clips"),
        "a partition depends on the rows alone, so that sites agree on it wherever their recordings lie",
    ),
    Rule(
        "shard_descriptors.clips",
        ("shard_descriptors.sources", "shard_descriptors.partition"),
        "sound is decoded the same way for every source and every shard",
    ),
)

ENGINE = (
    "federation.director",
    "federation.notebook",
    "federation.site.client",
    "federation.site.collaborator",
    "federation.site.cuda_monitor",
    "federation.site.envoy",
    "federation.site.job",
    "federation.site.trainer",
    "federation.site.worker",
    "federation.experiment",
    "federation.logs",
    "federation.envoy",
    "kws.tasks",
    "lab.submission",
    "shard_descriptors.descriptor",
    "shard_descriptors.superb_ks",
)
"""All that cannot be imported without OpenFL."""
ABSENT = {
    ("kws", "lab"): ("openfl", "federation"),
    ("rules", "shard_descriptors"): ("openfl", "federation", "kws", "lab", *LEARNING),
    ("federation",): ("openfl", *SPEECH, *LEARNING),
}
"""What packages are imported without, but for the modules in `ENGINE`."""
RUN = ("lab.__main__",)
"""Modules that do something when they are imported."""


def modules(root: Path, package: str) -> dict[str, Path]:
    """Files of a package by dotted name."""
    return {
        ".".join((package, *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in sorted(root.rglob("*.py"))
    }


MODULES = {name: path for package, root in PACKAGES.items() for name, path in modules(root, package).items()}


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names that a file imports and the lines: at the top, within a function, for types only, or by name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from ((str(each.value), node.lineno) for each in node.args[:1] if isinstance(each, ast.Constant))


def within(name: str, place: str) -> bool:
    """Whether a module is the place, or lies in it."""
    if place.endswith(".*"):
        return name.rpartition(".")[0] == place[:-2]
    return name == place or name.startswith(f"{place}.")


def broken(rule: Rule, files: Mapping[str, Path]) -> list[str]:
    """Where a rule is broken, and what it is for."""
    found = []
    for name, path in files.items():
        allowed = rule.but.get(name, ())
        for target, line in imported(path) if within(name, rule.who) else ():
            if any(within(target, each) for each in rule.never) and not any(within(target, each) for each in allowed):
                found.append(f"{path}:{line}: {name} imports {target}; {rule.who} never does: {rule.why}")
    return found


def unused(rule: Rule, files: Mapping[str, Path]) -> list[str]:
    """What in a rule is about nothing: a room that is not there, an exception that nobody needs."""
    idle = [] if any(within(name, rule.who) for name in files) else [rule.who]
    for name, allowed in rule.but.items():
        targets = [target for target, _ in imported(files[name])] if name in files else []
        idle += [] if name in files else [name]
        idle += [f"{name}: {each}" for each in allowed if not any(within(target, each) for target in targets)]
    return idle


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.who} never {' '.join(rule.never[:2])}")
def test_who_may_import_whom(rule: Rule) -> None:
    problems = broken(rule, MODULES)
    assert not problems, "\n".join(problems)
    assert unused(rule, MODULES) == []


def test_the_check_sees_an_import_wherever_it_stands(tmp_path: Path) -> None:
    texts = {
        "house.site.top": "import house.director.state",
        "house.site.room": "from house import director",
        "house.site.function": "def f():\n    from house.director import state",
        "house.site.types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.director",
        "house.site.name": "import importlib\nimportlib.import_module('house.director.state')",
        "house.site.right": "import house.wire, house.directories",
        "house.site.door": "import house.director.door\nimport house.director.state",
        "house.director.own": "import house.director.state",
        "house.ground": "import house.director",
    }
    files = {name: tmp_path / f"{name}.py" for name in texts}
    for name, path in files.items():
        path.write_text(texts[name])
    rule = Rule("house.site", ("house.director",), "a reason", but={"house.site.door": ("house.director.door",)})
    problems = broken(rule, files)
    lines = [problem.removeprefix(f"{tmp_path}/").partition(":")[2].partition(":")[0] for problem in problems]
    named = [problem.split()[1] for problem in problems]
    assert dict(zip(named, lines, strict=True)) == {
        "house.site.top": "1", "house.site.room": "1", "house.site.function": "2", "house.site.types": "3",
        "house.site.name": "2", "house.site.door": "2",
    }  # fmt: skip
    assert all(problem.endswith("house.site never does: a reason") for problem in problems)
    (ground,) = broken(Rule("house.*", ("house.director",), "a reason"), files)
    assert "house.ground imports house.director" in ground
    assert unused(rule, files) == []
    idle = Rule("house.cellar", ("house",), "", but={"house.site.right": ("house.roof",), "house.attic": ()})
    assert unused(idle, files) == ["house.cellar", "house.site.right: house.roof", "house.attic"]


@pytest.mark.parametrize("packages", ABSENT, ids=" ".join)
def test_everything_else_imports_where_the_engine_is_missing(packages: tuple[str, ...]) -> None:
    names = [
        name
        for name in MODULES
        if any(within(name, each) for each in packages) and not any(within(name, each) for each in (*ENGINE, *RUN))
    ]
    assert len(names) > 15
    code = (
        "import importlib, sys, traceback\n"
        "absent, names = (each.split() for each in sys.argv[1:])\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        "for name in names:\n"
        "    try: importlib.import_module(name)\n"
        "    except Exception: print(name); traceback.print_exc(limit=-1, file=sys.stdout)\n"
    )
    command = [sys.executable, "-c", code, " ".join(ABSENT[packages]), " ".join(names)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not done.stdout, done.stdout


@pytest.mark.parametrize("name", ENGINE)
def test_whoever_is_excused_has_a_reason(name: str) -> None:
    """It imports the engine, or another that does."""
    targets = [target for module, path in MODULES.items() if within(module, name) for target, _ in imported(path)]
    others = [each for each in ENGINE if each != name]
    assert any(within(target, each) for target in targets for each in ("openfl", *others))


def loaded(code: str) -> set[str]:
    """Which of the larger libraries a process has loaded after running some code."""
    told = "import sys\n" + code + "\nprint('loaded', *{'grpc', 'openfl', 'torch', 'sklearn'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("loaded")[2].split())


COMMAND = "from {} import main\nsys.argv[1:] = {}\ntry: main()\nexcept SystemExit: pass"


@pytest.mark.parametrize(
    "code",
    [
        "import federation.settings, federation.policy, federation.schedule, federation.authority",
        COMMAND.format("federation.review", ["list", "--config", "envoy/envoy.yaml"]),
        COMMAND.format("federation.certificates", ["--help"]),
    ],
    ids=["settings", "review", "certificates"],
)
def test_what_needs_no_engine_does_not_load_it(code: str) -> None:
    assert loaded(code) == set()


@pytest.mark.parametrize(
    "code",
    [
        "import federation.director.server",
        "import federation.notebook.handle",
        COMMAND.format("federation.envoy", ["--config", "{yaml}"]),
        "from federation.site.trainer import TrainerTask, run\n"
        "task = TrainerTask('/', '', '', '', 0, 'nowhere.Shard', {}, [], {})\n"
        "try: run(task)\nexcept Exception: pass",
    ],
    ids=["director", "notebook", "envoy", "trainer"],
)
def test_whatever_runs_the_engine_does_without_pytorch(code: str, tmp_path: Path) -> None:
    yaml = tmp_path / "envoy.yaml"
    yaml.write_text("{name: site, shard_descriptor: {template: nowhere.Shard}}")
    assert loaded(code.replace("{yaml}", str(yaml))) == {"openfl", "grpc"}
