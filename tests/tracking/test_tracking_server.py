"""How the server is started: what listens, what it answers to, what it will not do."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

import pytest

from services.tracking.server import is_healthy, server_command, server_environment, wait_until_healthy


def _status(url: str, host: str | None = None) -> int:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_server_answers_to_this_host_only(mlflow_server):
    page = f"{mlflow_server.url}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert _status(page) == 200
    assert _status(page, f"localhost:{mlflow_server.port}") == 200
    assert _status(page, "evil.example") == 403


def test_what_could_run_code_is_switched_off(tmp_path):
    environment = server_environment(tmp_path)
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    command = server_command(tmp_path, 5001)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--workers") + 1] == "1"
    assert str(tmp_path / "mlflow" / "mlflow.db") in " ".join(command)


def test_health_needs_no_proxy_and_no_server_means_no(mlflow_server, dead_url, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, dead_url)
    assert is_healthy(mlflow_server.url)
    assert not is_healthy(dead_url) and not wait_until_healthy(dead_url, 0.5)


def test_links_need_no_mlflow():
    code = "import services.tracking.links, services.tracking.log, services.tracking.server, services.tracking.sender, sys; print('mlflow' in sys.modules)"
    import subprocess

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=os.getcwd())
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize("missing", ["means", "all"])
def test_the_heat_map_draws_what_was_not_measured_as_a_gap(missing):
    from services.tracking.figures import score_matrix_figure

    means = [[0.1, None], [0.9, 0.5]] if missing == "means" else [[None, None], [None, None]]
    figure = score_matrix_figure({"rows": ["base", "a"], "domains": ["a", "b"], "means": means})
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == (["0.10", "-", "0.90", "0.50"] if missing == "means" else ["-"] * 4)
