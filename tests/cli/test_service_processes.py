"""Which processes are ours: the rules by which ``down`` and ``up`` end a process or leave it alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from api import processes
from api.launcher import Launcher, ensure_api_key
from api.ports import check_ports
from cluster.errors import HoldfastError
from cluster.session import INSTANCE_VARIABLE, head_command, lean_start, service_environment, write_token
from cluster.settings import Settings


@pytest.fixture
def start(settings) -> Iterator:
    started: list[subprocess.Popen] = []

    def _start(instance: str | None) -> psutil.Process:
        environment = {key: value for key, value in os.environ.items() if key != INSTANCE_VARIABLE}
        if instance is not None:
            environment[INSTANCE_VARIABLE] = instance
        child = subprocess.Popen([sys.executable, "-c", "print('up', flush=True); import time; time.sleep(60)"], env=environment, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        started.append(child)
        return psutil.Process(child.pid)

    yield _start
    for child in started:
        child.kill()
        child.wait()
        child.stdout.close()


def test_sweep_ends_what_carries_our_mark_and_nothing_else(settings, start):
    ours, other, unmarked = start(settings.instance), start("another0"), start(None)
    assert [process.pid for process in processes.own_processes(settings)] == [ours.pid]
    assert processes.sweep(settings, grace_s=3) == 1
    assert not psutil.pid_exists(ours.pid) or ours.status() == psutil.STATUS_ZOMBIE
    assert other.is_running() and unmarked.is_running()


def test_a_number_that_another_process_got_meanwhile_is_not_ours(settings, start):
    ours, unmarked = start(settings.instance), start(None)
    recorded = processes.Recorded.of("ray-gcs", ours)
    assert processes.alive(settings, recorded) == ours
    assert processes.alive(settings, processes.Recorded("ray-gcs", ours.pid, recorded.create_time - 100)) is None
    assert processes.alive(settings, processes.Recorded.of("ray-gcs", unmarked)) is None
    ours.kill()
    ours.wait()
    assert processes.alive(settings, recorded) is None


def test_down_spares_strangers_that_the_state_file_names(settings, start):
    """A file from before a reboot may hold any number; this one holds a stranger's, right start time and all."""
    settings.home.mkdir()
    stranger = start("another0")
    processes.write_state(settings, [processes.Recorded.of("ray-gcs", stranger), processes.Recorded("mlflow", os.getpid(), psutil.Process().create_time())])
    assert Launcher(settings).down() is False
    assert stranger.is_running()
    assert not processes.state_file(settings).exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"processes": [{"role": "x"}]}', '{"processes": 3}', "not json"])
def test_a_damaged_state_file_is_an_empty_one(settings, content):
    settings.home.mkdir()
    processes.state_file(settings).write_text(content)
    assert processes.read_state(settings) == []


def test_state_is_read_as_it_was_written(settings):
    settings.home.mkdir()
    written = [processes.Recorded("ray-gcs", 12, 1234.5), processes.Recorded("mlflow", 13, 1234.25)]
    processes.write_state(settings, written)
    assert processes.read_state(settings) == written
    assert json.loads(processes.state_file(settings).read_text())["instance"] == settings.instance


def test_a_taken_port_is_named_with_its_setting_and_its_holder(settings):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settings.mlflow_port))
        taken.listen()
        with pytest.raises(HoldfastError) as caught:
            check_ports(settings, ("Ray", "MLflow", "API"))
    (fault,) = caught.value.details["faults"]
    assert caught.value.reason == "port_taken"
    assert fault["pointer"] == "HOLDFAST_MLFLOW_PORT"
    assert str(settings.mlflow_port) in fault["detail"] and f"process {os.getpid()}" in fault["detail"]
    check_ports(settings, ("Ray", "MLflow", "API"))


def test_two_parts_on_one_port_are_refused(settings):
    same = settings.model_copy(update={"mlflow_port": settings.api_port})
    with pytest.raises(HoldfastError) as caught:
        check_ports(same, ("MLflow", "API"))
    assert "both want port" in caught.value.details["faults"][0]["detail"]


def test_up_on_a_taken_port_starts_nothing_and_exits_with_two(holdfast, settings):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settings.ray_port))
        taken.listen()
        result = holdfast("up")
    assert result.exit_code == 2
    assert "HOLDFAST_RAY_PORT" in result.output and str(settings.ray_port) in result.output
    assert processes.own_processes(settings) == []
    assert not settings.ray_temp_dir.exists()


def test_other_machines_are_let_in_only_when_it_is_said(holdfast, settings, monkeypatch):
    monkeypatch.setenv("HOLDFAST_API_HOST", "0.0.0.0")
    result = holdfast("up")
    assert result.exit_code == 2 and "--expose" in result.output
    assert not settings.home.exists()


def test_a_child_s_settings_are_ours_and_its_environment_is_quiet(settings, monkeypatch):
    changed = settings.model_copy(update={"max_running_jobs": 3, "logical_cpus": 24})
    environment = service_environment(changed)
    for name in [name for name in os.environ if name.startswith("HOLDFAST_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Settings() == changed.model_copy(update={"home": changed.home.absolute()})
    assert environment["RAY_AUTH_MODE"] == "token" and environment["RAY_AUTH_TOKEN_PATH"] == str(changed.ray_token_file)
    assert environment[INSTANCE_VARIABLE] == changed.instance
    assert all(environment[name] in ("0", "1", "true") for name in ("RAY_USAGE_STATS_ENABLED", "DO_NOT_TRACK", "VLLM_NO_USAGE_STATS"))


def test_an_outer_cluster_keeps_its_own_authentication(settings, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/somewhere/else")
    outer = settings.model_copy(update={"ray_address": "10.0.0.1:6379"})
    environment = service_environment(outer)
    assert environment["RAY_AUTH_TOKEN_PATH"] == "/somewhere/else"
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in environment and "TMPDIR" not in environment


def test_ray_is_started_on_loopback_without_a_client_server(settings):
    command = head_command(settings, gpus=0)
    for option in ("--node-ip-address", "--dashboard-host"):
        assert command[command.index(option) + 1] == "127.0.0.1"
    assert command[command.index("--num-cpus") + 1] == "16"

    class Parameters:
        ray_client_server_port: int | None = 10001

    lean_start(Parameters, head=True)
    assert Parameters.ray_client_server_port is None


def test_the_token_is_secret_and_stays_the_same(settings):
    write_token(settings)
    token = settings.ray_token_file.read_text()
    assert len(token) == 64 and settings.ray_token_file.stat().st_mode & 0o777 == 0o600
    write_token(settings)
    assert settings.ray_token_file.read_text() == token


def test_a_key_is_made_once_and_again_where_the_store_does_not_know_it(settings):
    class Store:
        keys: list[str] = []  # noqa: RUF012

        def create_api_key(self, name: str) -> str:
            self.keys.append(f"hf_{len(self.keys)}_secret")
            return self.keys[-1]

        def verify_api_key(self, text: str) -> bool:
            return text in self.keys

    settings.home.mkdir()
    store = Store()
    assert ensure_api_key(settings, store) == "hf_0_secret"
    assert settings.api_key_file.stat().st_mode & 0o777 == 0o600
    assert ensure_api_key(settings, store) is None
    store.keys.clear()  # another database
    assert ensure_api_key(settings, store) == "hf_0_secret"
    assert settings.api_key_file.read_text().strip() == "hf_0_secret"
