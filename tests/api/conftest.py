"""An application over a real SQLite store in a temporary home, without Ray; over ASGI, and over a real socket."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from safetensors.numpy import save_file
from starlette.testclient import TestClient

from api.app import create_app
from api.client import HoldfastClient
from cluster.settings import Settings
from services.jobs.store import JobStore

VOCABULARY = 96


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    home = tmp_path / "home"
    home.mkdir()
    (home / "cluster.json").write_text(json.dumps({"cpus": 16.0, "gpus": 0.0, "nodes": 1}))
    return Settings(home=home, mlflow_port=9, database_url=None)


@pytest.fixture
def store(settings: Settings):
    store = JobStore(settings.database)
    store.migrate()
    yield store
    if hasattr(store, "close"):
        store.close()


@pytest.fixture
def key(store) -> str:
    return store.create_api_key("tests")


@pytest.fixture
def app(settings, store):
    return create_app(settings, store=store, poll_s=0.02)


@pytest.fixture
def anonymous(app) -> TestClient:
    return TestClient(app, raise_server_exceptions=True)


@pytest.fixture
def http(app, key) -> TestClient:
    return TestClient(app, headers={"Authorization": f"Bearer {key}"})


@pytest.fixture
def server(app):
    """The application on a real socket, for streams; its address."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def client(server, key):
    with HoldfastClient(server, key, backoff_s=0.02) as client:
        yield client


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a base model: configuration, tokenizer, one small safetensors file."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": VOCABULARY, "max_position_embeddings": 2048}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    save_file({"model.embed_tokens.weight": np.zeros((VOCABULARY, 4), np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def spec(model: Path) -> dict:
    """A job file that has no faults."""
    return {
        "version": 1,
        "name": "demo",
        "model": {"path": str(model)},
        "seed": 7,
        "defaults": {"steps": 20, "sampling": {"max_tokens": 32}, "max_prompt_tokens": 128},
        "stages": [
            {"name": "arithmetic", "domain": {"kind": "arithmetic", "digits": 2}, "method": {"recipe": "grpo"}},
            {"name": "strings", "domain": {"kind": "strings"}, "method": {"recipe": "sdpo", "teacher": {"kind": "ema"}}},
        ],
        "evaluation": {"problems": 128},
        "compute": {"device": "cpu"},
    }
