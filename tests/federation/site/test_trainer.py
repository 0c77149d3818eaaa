"""What a trainer process refuses before it talks to anybody."""

import os
import subprocess
import sys
from pathlib import Path

import cloudpickle
import yaml
from toy.experiment import TASKS, Numbers, VectorModel

from federation.site.trainer import FAILURE_FILE, TrainerTask

TOYS = Path(__file__).resolve().parents[2] / "end_to_end"


def test_a_collaborator_that_keeps_no_log_is_refused(tmp_path: Path) -> None:
    objects = {"model_obj.pkl": VectorModel(), "tasks_obj.pkl": TASKS, "loader_obj.pkl": Numbers()}
    for name, each in objects.items():
        (tmp_path / name).write_bytes(cloudpickle.dumps(each))
    files = zip(("model", "tasks", "dataloader"), objects, strict=True)
    plan = {
        "aggregator": {"settings": {"rounds_to_train": 1}},
        "api_layer": {
            "required_plugin_components": {
                "serializer_plugin": "openfl.plugins.interface_serializer.cloudpickle_serializer.CloudpickleSerializer"
            },
            "settings": {f"{kind}_interface_file": name for kind, name in files},
        },
        "collaborator": {"template": "openfl.component.Collaborator", "settings": {"db_store_rounds": 1}},
        "network": {"settings": {"agg_addr": "localhost", "agg_port": 0}},
        "task_runner": {
            "template": "openfl.federated.task.task_runner.CoreTaskRunner",
            "required_plugin_components": {"framework_adapters": "toy.experiment.VectorAdapter"},
        },
    }
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "plan.yaml").write_text(yaml.safe_dump(plan))
    certificates = dict.fromkeys(("root_certificate", "private_key", "certificate"))
    task = TrainerTask(str(tmp_path), "x", "site", "localhost", 1, "toy_shard.ToyShard", {"value": 1}, [], certificates)
    paths = os.pathsep.join((str(TOYS), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, "-m", "federation.site.trainer"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths}) as trainer:
        assert trainer.stdin
        trainer.stdin.write(task.to_json() + "\n")
        trainer.stdin.flush()  # and stays open, as an envoy's does
        assert trainer.wait(60) == 1
    told = (tmp_path / FAILURE_FILE).read_text()
    assert "collaborator.template is <class 'openfl.component.collaborator.collaborator.Collaborator'>" in told
    assert "allowed: federation.site.collaborator.Collaborator" in told
