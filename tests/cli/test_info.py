from pathlib import Path
from types import SimpleNamespace

import torch

from ghost_ops.bench import machine, surroundings

from .command import found_by, invoke


def test_info():
    found = found_by("info", "--json")
    assert found["backends"]["reference"] == "ready" and found["versions"]["torch"] and found["cores"] >= 1
    assert not any(str(Path.home()) in str(value) for value in found.values())
    table = invoke("info")
    assert table.exit_code == 0 and found["versions"]["torch"] in table.stdout and found["cpu"] in table.stdout


def test_info_says_how_to_install_what_is_missing(monkeypatch):
    monkeypatch.setattr(machine, "version_of", lambda name: None)
    assert 'not installed: pip install "ghost-ops[bench]"' in invoke("info").stdout


def test_info_has_what_a_maintainer_asks_for(monkeypatch):
    monkeypatch.setenv("GHOST_OPS_KEEP_MB", "7")
    monkeypatch.setenv("TORCH_HOME", str(Path.home() / "weights"))
    monkeypatch.setenv("TORCH_TOKEN", "hush")
    monkeypatch.setenv("SOMETHING_ELSE", "hush")
    found = found_by("info", "--json")
    assert found["environment"]["GHOST_OPS_KEEP_MB"] == "7" and found["environment"]["TORCH_HOME"] == "~/weights"
    assert "hush" not in str(found) and found["environment"]["TORCH_TOKEN"] == "(hidden)"
    assert found["threads"]["intra_op"] >= 1 and found["host"]["kernel"] and found["torch"]["cpu_capability"]
    if found["build"]:
        assert found["build"]["loaded"] == (found["backends"]["native"] == "ready") and found["build"]["sha256"]
    shown = invoke("info").stdout
    assert "~/weights" in shown and "GPU driver" in shown and "between operators" in shown


def test_limits_of_a_container_and_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(surroundings, "CPU_LIMIT", tmp_path / "cpu")
    monkeypatch.setattr(surroundings, "MEMORY_LIMIT", tmp_path / "memory")
    (tmp_path / "cpu").write_text("150000 100000\n")
    (tmp_path / "memory").write_text("1073741824\n")
    device = SimpleNamespace(name="A card", major=9, minor=0, total_memory=1 << 30, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    monkeypatch.setattr(surroundings, "driver", lambda: "570.1 (CUDA 12.8)")
    found = surroundings.describe()
    assert found["threads"]["cpu_limit"] == 1.5 and found["host"]["memory_limit_mib"] == 1024
    (gpu,) = found["gpus"]["devices"]
    assert gpu == {"name": "A card", "capability": "9.0", "memory_mib": 1024, "multiprocessors": 132}
    monkeypatch.setattr(surroundings, "describe", lambda: found)
    shown = invoke("info").stdout
    assert "limited to 1.5 processors" in shown and "A card, compute capability 9.0" in shown and "570.1" in shown
    (tmp_path / "cpu").write_text("max 100000\n")
    assert "cpu_limit" not in surroundings.threads()


def test_info_without_a_library(monkeypatch, tmp_path):
    monkeypatch.setattr(surroundings.native, "LIBRARY", tmp_path / "_cpu.so")
    assert surroundings.build() == {} and "no compiled library" in invoke("info").stdout
