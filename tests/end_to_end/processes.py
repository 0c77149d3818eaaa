"""Real processes under a test: started, followed by their logs, and ended however the test ends."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[2]
PYTHON = HOUSE / ".venv" / "bin" / "python"
TOYS = Path(__file__).resolve().parent


class Processes:
    """Named processes that log into a folder."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None):
        self.log_path(name).unlink(missing_ok=True)
        with self.log_path(name).open("wb") as log:
            self.running[name] = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | (env or {}),
                cwd=cwd,
                start_new_session=True,
            )
        return self.running[name]

    def log_path(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def log(self, name: str) -> str:
        return self.log_path(name).read_text(errors="replace")

    def wait_for(self, name: str, pattern: str, seconds: float = 60) -> re.Match[str]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := re.search(pattern, self.log(name)):
                return found
            if self.running[name].poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"{name} has not said {pattern!r}:\n{self.log(name)}")

    def wait(self, name: str, seconds: float = 60) -> int:
        return self.running[name].wait(seconds)

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running[name].wait(10)

    def stop(self) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.terminate()
        for process in self.running.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


def write_site(
    folder: Path,
    name: str,
    port: int,
    template: str,
    params: Mapping[str, object],
    accept: str = "any",
    **more: object,
) -> Path:
    """An envoy.yaml for a site of a test; `more`: `params` of it."""
    import yaml

    settings = {
        "name": name,
        "director": {"host": "localhost", "port": port},
        "params": {"cpu_threads": 1, "state": "sites", **more},
        "shard_descriptor": {"template": template, "params": dict(params)},
        "review": {"accept": accept, "folder": f"{name}.review"},
        "audit": f"{name}.audit.jsonl",
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def certificate_lines(authority: Path, name: str) -> dict[str, str]:
    """The three lines that name a certificate in a YAML file."""
    files = {"root_certificate": "root_ca.crt", "private_key": f"{name}.key", "certificate": f"{name}.crt"}
    return {setting: str(authority / file) for setting, file in files.items()}


class ToyFederation(Processes):
    """A director and toy envoys; site `n` holds the number n."""

    health_check_period = 1

    def __init__(self, folder: Path, sites: int = 2) -> None:
        super().__init__(folder)
        self.env = {"PYTHONPATH": str(TOYS), "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
        (folder / "tmp").mkdir(exist_ok=True)
        try:
            self.port = self.start_director()
            for number in range(1, sites + 1):
                self.start_site(f"site{number}", float(number))
            for number in range(1, sites + 1):
                self.wait_for(f"site{number}", "registered")
        except BaseException:
            self.stop()
            raise

    def start_director(self, port: int = 0) -> int:
        config = self.logs / "director.yaml"
        config.write_text(
            "settings: {sample_shape: ['4'], target_shape: ['1'], state: state, "
            f"envoy_health_check_period: {self.health_check_period}}}\n"
        )
        self.start(
            "director", PYTHON, "-m", "federation.director", "--config", config, "--port", str(port), env=self.env
        )
        return int(self.wait_for("director", r"listening on .*:(\d+)")[1])

    def start_site(self, name: str, value: float, accept: str = "any", slots: int = 1, **params: object) -> None:
        given = {"value": value, **params}
        config = write_site(self.logs, name, self.port, "toy_shard.ToyShard", given, accept, slots=slots)
        self.start(name, PYTHON, "-m", "federation.envoy", "--config", config, env=self.env | {"TOY_SITE": name})
