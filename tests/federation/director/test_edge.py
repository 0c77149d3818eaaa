import subprocess
import sys

import pytest
from openfl.protocols import director_pb2

from federation.director.edge import shard_problem
from federation.settings import RESERVED_NAMES
from federation.wire.names import experiment_name_problem, site_name_problem


@pytest.mark.parametrize("name", ["envoy", "envoy_two", "site-3", "7", "a" * 100])
def test_names_of_sites(name: str) -> None:
    assert site_name_problem(name) is None


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "é", "a\n", "a" * 101])
def test_what_is_no_name_of_a_site(name: str) -> None:
    assert "allowed: up to 100 letters, digits, '-' and '_'" in str(site_name_problem(name))


@pytest.mark.parametrize("name", ["first/one", "All or nothing (2)", "0", "Übung 3", "a" * 100])
def test_names_of_experiments(name: str) -> None:
    assert experiment_name_problem(name) is None


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", " a", "a\x00", "a\nb", "a" * 101, "a" + "\u4e00" * 50])
def test_what_is_no_name_of_an_experiment(name: str) -> None:
    assert "is not a name for an experiment; allowed: up to 100" in str(experiment_name_problem(name))


def test_what_an_envoy_may_tell_of_its_shard() -> None:
    info = director_pb2.ShardInfo(node_info=director_pb2.NodeInfo(name="site"), shard_description="x" * 100_000)
    assert shard_problem(info) is None
    info.shard_description += "x"
    assert "shorten dataset_description" in str(shard_problem(info))
    info.shard_description = ""
    info.sample_shape.extend(["1"] * 17)
    assert "16 dimensions" in str(shard_problem(info))


@pytest.mark.parametrize("name", RESERVED_NAMES)
def test_nobody_speaks_in_the_directors_name(name: str) -> None:
    info = director_pb2.ShardInfo(node_info=director_pb2.NodeInfo(name=name))
    assert "reserved" in str(shard_problem(info))


def soft_limit(wanted: int, hard: int) -> str:
    """What a process with these limits says, and has then."""
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({wanted}, {hard}))\n"
        "from federation.director.limits import raise_file_limit\n"
        "print(raise_file_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_as_many_files_as_the_system_allows() -> None:
    assert soft_limit(256, 10_000).startswith("1000 10000")
    few = soft_limit(256, 1024)
    assert few.startswith("231 1024")
    assert "enough for some 231 sites of the 1000 that may register; raise the limit" in few
