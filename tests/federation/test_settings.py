from pathlib import Path

import pytest
import yaml

from federation.errors import SettingsError
from federation.settings import DirectorSettings, load_director, load_envoy, usable_cores

HOUSE = Path(__file__).resolve().parents[2]


def write(folder: Path, settings: object) -> Path:
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def envoy(**changes: object) -> dict:
    return {"name": "site", "shard_descriptor": {"template": "a.B", "params": {"shard": 1}}} | changes


@pytest.mark.parametrize("name", ["envoy", "envoy_two"])
def test_the_house_has_envoys_that_load(name: str) -> None:
    settings = load_envoy(HOUSE / name / "envoy.yaml")
    assert settings.name == name
    assert settings.cuda_devices == (0,)
    assert settings.cpu_threads == max(1, usable_cores() // 2)
    assert settings.descriptor_params["of"] == 2


def test_the_house_has_a_director_that_loads() -> None:
    settings = load_director(HOUSE / "director" / "director.yaml")
    assert settings.sample_shape == ()
    assert not settings.certificates.tls


def test_the_two_envoys_differ_in_name_and_shard_only() -> None:
    one, two = ((HOUSE / name / "envoy.yaml").read_text().splitlines() for name in ("envoy", "envoy_two"))
    different = [(a, b) for a, b in zip(one, two, strict=True) if a != b]
    assert all("envoy" in a or "shard:" in a for a, _ in different)
    assert len(different) == 4
    scripts = [(HOUSE / name / "start_envoy.sh").read_text() for name in ("envoy", "envoy_two")]
    assert scripts[0] == scripts[1]


def test_whose_code_runs_is_asked_unless_the_owner_says_otherwise(tmp_path: Path) -> None:
    settings = load_envoy(write(tmp_path, envoy()))
    assert (settings.accept, settings.review_folder) == ("ask", tmp_path / "review")
    assert settings.audit == tmp_path / "audit.jsonl"
    settings = load_envoy(write(tmp_path, envoy(review={"accept": "approved", "folder": "kept"}, audit=None)))
    assert (settings.accept, settings.review_folder, settings.audit) == ("approved", tmp_path / "kept", None)
    for name in ("envoy", "envoy_two"):
        assert load_envoy(HOUSE / name / "envoy.yaml").accept == "any"  # a demo


def test_slots_and_what_is_told_of_failures(tmp_path: Path) -> None:
    settings = load_envoy(write(tmp_path, envoy()))
    assert (settings.slots, settings.failures) == (1, "line")
    given = envoy(params={"slots": {"cuda:0": 2, "cpu": 1}}, review={"failures": "full"})
    settings = load_envoy(write(tmp_path, given))
    assert (settings.slots, settings.failures) == ({"cuda:0": 2, "cpu": 1}, "full")
    for slots in (0, -1, 65, True, 1.5, "two", [1], {"cuda:0": 0}, {"gpu": 1}, {"cuda": 1}, {0: 1}):
        with pytest.raises(SettingsError, match=r"params\.slots.*(allowed: 1 to 64|allowed: cpu, cuda:0)"):
            load_envoy(write(tmp_path, envoy(params={"slots": slots})))
    with pytest.raises(SettingsError, match=r"review\.failures: 'some'; allowed: place, line, full"):
        load_envoy(write(tmp_path, envoy(review={"failures": "some"})))


def test_what_is_given_wins_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, envoy(director={"port": 1234}))
    assert load_envoy(path).director_port == 1234
    assert load_envoy(path, director_port=99, cpu_threads=3).director_port == 99
    assert load_envoy(path, director_port=None).director_port == 1234


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (envoy(name="not a name"), "not a site name"),
        (envoy(name="aggregator"), "reserved"),
        (envoy(shard_descriptor={}), "not a dotted path"),
        (envoy(director={"port": 0}), "not a port; allowed: 1 to 65535"),
        (envoy(params={"cpu_threads": 0}), "cpu_threads: 0"),
        (envoy(params={"cpu_threads": "many"}), "wrong type"),
        (envoy(parms={}), "unknown setting 'parms'; allowed: "),
        (envoy(review={"accept": "all"}), "review.accept: 'all'; allowed: any, approved, ask"),
        (envoy(review={"acept": "any"}), "unknown setting 'acept'; allowed: accept, failures, folder"),
        (envoy(params={"gpu": 1}), "unknown setting 'gpu'; allowed: cpu_threads, cuda_devices"),
        (envoy(director="localhost"), "'director' must hold: host, port"),
        (
            envoy(
                optional_plugin_components={"cuda_device_monitor": {"template": "federation.cuda_monitor.CudaMonitor"}}
            ),
            "federation.cuda_monitor.CudaMonitor is federation.site.cuda_monitor.CudaMonitor now; change the line",
        ),
        (envoy(private_key="none.key"), "TLS needs all of"),
        ([1, 2], "holds no settings"),
    ],
)
def test_wrong_envoy_settings(tmp_path: Path, settings: object, words: str) -> None:
    with pytest.raises(SettingsError) as error:
        load_envoy(write(tmp_path, settings))
    assert words in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_problems_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        load_envoy(write(tmp_path, envoy(name="", director={"port": -1})))
    assert len(str(error.value).splitlines()) == 3


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_envoy(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(SettingsError, match="not valid YAML"):
        load_director(tmp_path / "bad.yaml")


def test_without_tls_the_director_listens_on_this_machine_only() -> None:
    with pytest.raises(SettingsError, match=r"0\.0\.0\.0 is reachable from other machines"):
        DirectorSettings(listen_host="0.0.0.0")


def test_certificate_paths_count_from_the_yaml(tmp_path: Path) -> None:
    for name in ("ca", "key", "crt"):
        (tmp_path / name).write_text("")
    paths = {"root_certificate": "ca", "private_key": "key", "certificate": "crt"}
    settings = load_director(write(tmp_path, {"settings": {"listen_host": "0.0.0.0"}} | paths))
    assert settings.certificates.private_key == tmp_path / "key"
    with pytest.raises(SettingsError, match="private_key: no such file"):
        load_director(write(tmp_path, {"settings": {}} | paths | {"private_key": "lost"}))
