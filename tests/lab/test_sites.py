import os
import shutil
from pathlib import Path

import pytest
import yaml

from federation.settings import load_envoy
from lab.sites import HOUSE, SiteError, add_site


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the three folders of settings."""
    for folder in ("director", "envoy", "envoy_two"):
        shutil.copytree(HOUSE / folder, tmp_path / folder, ignore=shutil.ignore_patterns("cert"))
    return tmp_path


def test_a_new_site_can_be_started(house: Path) -> None:
    told = add_site("envoy_three", house)
    settings = load_envoy(house / "envoy_three" / "envoy.yaml")
    template = load_envoy(house / "envoy" / "envoy.yaml")
    assert settings.name == "envoy_three"
    assert settings.descriptor_params == {**template.descriptor_params, "shard": 3, "of": 3}
    assert (settings.director_host, settings.director_port) == (template.director_host, template.director_port)
    assert settings.descriptor == template.descriptor
    text = (house / "envoy_three" / "envoy.yaml").read_text()
    assert yaml.safe_load(text)["params"]["envoys_on_this_machine"] == 3
    assert "# certificate: cert/envoy_three.crt" in text
    script = house / "envoy_three" / "start_envoy.sh"
    assert os.access(script, os.X_OK)
    assert script.read_bytes() == (house / "envoy" / "start_envoy.sh").read_bytes()
    for part in ("shard 3 of 3", "envoy/envoy.yaml", "envoy_two/envoy.yaml", "of: 3", "envoy_three/start_envoy.sh"):
        assert part in told


def test_the_second_new_site_is_number_four(house: Path) -> None:
    before = {path: path.read_bytes() for path in house.glob("*/*") if path.is_file()}
    add_site("envoy_three", house)
    told = add_site("clinic-4", house)
    assert load_envoy(house / "clinic-4" / "envoy.yaml").descriptor_params["shard"] == 4
    assert "envoy_three/envoy.yaml" in told
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_site_with_recordings_of_its_own_has_no_shard(house: Path) -> None:
    path = house / "envoy" / "envoy.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["shard_descriptor"]["params"] = {"source": "folder", "data_path": "/recordings", "partition": "own"}
    path.write_text(yaml.safe_dump(settings))
    told = add_site("clinic", house)
    assert load_envoy(house / "clinic" / "envoy.yaml").descriptor_params == settings["shard_descriptor"]["params"]
    assert "data_path" in told
    assert "wait for 3 sites" in told


def test_without_a_shard_to_follow_nothing_is_written(house: Path) -> None:
    path = house / "envoy" / "envoy.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "    shard: " not in line))
    with pytest.raises(SiteError, match="gives no `shard`"):
        add_site("clinic", house)
    assert not (house / "clinic").exists()


@pytest.mark.parametrize("name", ["", "3", "../evil", "a/b", "with space", "x:y", ".", "new\n", "aggregator", "pooled"])
def test_bad_names_are_refused(house: Path, name: str) -> None:
    before = sorted(house.rglob("*"))
    with pytest.raises(SiteError, match="name"):
        add_site(name, house)
    assert sorted(house.rglob("*")) == before


@pytest.mark.parametrize("name", ["envoy", "envoy_two", "director"])
def test_taken_names_are_refused(house: Path, name: str) -> None:
    with pytest.raises(SiteError, match=r"exists already.*another name"):
        add_site(name, house)
