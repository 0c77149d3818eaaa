import pytest
from openfl.protocols import base_pb2, director_pb2

from federation.director.edge import bounded, shard_problem
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


def test_a_stream_has_a_limit() -> None:
    chunks = [base_pb2.DataStream(npbytes=bytes(10)) for _ in range(3)]
    assert len(list(bounded(chunks, 30))) == 3
    taken = bounded(chunks, 29)
    assert [next(taken), next(taken)] == chunks[:2]
    with pytest.raises(ValueError, match="more than 29 bytes"):
        next(taken)
