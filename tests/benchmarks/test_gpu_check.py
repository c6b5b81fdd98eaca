"""``make gpu-check`` without a device: its parts on a CPU, and what becomes of parts that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ghost_ops.ops.program_train import MEMORY

ROOT = Path(__file__).resolve().parents[2]
IN_TESTS_OF_THEIR_OWN = ("kernels", "compiler")
FAULTY = "tests.benchmarks.faulty_parts"
pytestmark = pytest.mark.usefixtures("benchmarks")


def run(tmp_path, *names, seconds=30.0, **more):
    """The report after parts of ``faulty_parts``, and every report that was on disk when a part began."""
    from gpu_check_parts.runner import Part, Record, run_parts

    parts = [Part(name, f"{FAULTY}:{name}", 1.0, **more.get(name, {})) for name in names]
    record, seen = Record(tmp_path / "report.json", {"schema": 1}, parts), []

    def begins(part, left):
        seen.append(json.loads(record.path.read_text()))

    run_parts(parts, {"folder": str(tmp_path)}, record, time.monotonic() + seconds, begins)
    found = json.loads(record.path.read_text())
    return {part["part"]: part for part in found["parts"]}, seen


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_fails_is_noted_and_the_next_part_runs(tmp_path):
    names = ("works", "raises", "hangs", "finds_a_wrong_result", "has_nothing_to_do", "dies", "leaves")
    found, seen = run(tmp_path, *names, seconds=21.0)
    assert {name: part["status"] for name, part in found.items()} == {
        "works": "ok", "raises": "failed", "finds_a_wrong_result": "wrong", "has_nothing_to_do": "skipped",
        "dies": "failed", "leaves": "failed", "hangs": "timed out",
    }  # fmt: skip
    assert found["works"]["result"]["settings"] == {"folder": str(tmp_path)} and found["works"]["result"]["nan"] is None
    assert "ValueError: it broke (faulty_parts.py:" in found["raises"]["reason"]
    assert found["raises"]["result"] == {"so far": 1} and found["dies"]["result"] == {"so far": 2}
    assert found["finds_a_wrong_result"]["reason"] == "a gradient"
    assert found["finds_a_wrong_result"]["result"] == {"error": 0.5}
    assert "SIGSEGV" in found["dies"]["reason"] and "exit code 3" in found["leaves"]["reason"]
    assert not is_alive(found["hangs"]["result"]["child"])
    for count, report in enumerate(seen):  # complete, and up to date, before every part
        statuses = [part["status"] for part in report["parts"]]
        assert not {"not reached", "running"} & set(statuses[:count]) and set(statuses[count:]) == {"not reached"}


def test_the_whole_keeps_to_its_time(tmp_path):
    begin = time.monotonic()
    found, _ = run(tmp_path, "hangs", "works", "runs_on", "raises", seconds=12.0)
    assert time.monotonic() - begin < 14
    assert [part["status"] for part in found.values()] == ["timed out", "ok", "timed out", "failed"]
    found, _ = run(tmp_path, "works", "raises", seconds=1.0)
    assert [part["status"] for part in found.values()] == ["not reached"] * 2
    assert found["works"]["reason"] == "no time was left"


def test_a_part_runs_beside_others_until_one_that_is_alone(tmp_path):
    options = {"runs_on": {"beside": True}, "finds_a_wrong_result": {"alone": True}}
    found, seen = run(tmp_path, "runs_on", "waits_for_it", "finds_a_wrong_result", **options)
    assert [part["status"] for part in found.values()] == ["timed out", "ok", "wrong"]
    assert found["runs_on"]["result"]["count"] >= 1 and "alone" in found["runs_on"]["reason"]
    assert [report["parts"][0]["status"] for report in seen] == ["running", "timed out"]


def test_a_dry_run_goes_through_the_parts(tmp_path, benchmarks):
    import gpu_check

    names = [part.name for part in gpu_check.PARTS if part.name not in IN_TESTS_OF_THEIR_OWN]
    command = [sys.executable, "benchmarks/gpu_check.py", "--dry-run", "--out", str(tmp_path), "--commit", "abc"]
    command += [word for name in names for word in ("--part", name)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = tmp_path.iterdir()
    report = json.loads(path.read_text())
    assert report["ok"] is True and report["dry_run"] is True and report["schema"] == 1
    machine = report["machine"]
    assert {"gpu", "driver", "cuda", "cpu", "date"} <= set(machine) and machine["commit"] == "abc"
    assert {"python", "torch", "triton"} <= set(machine["versions"])
    found = {part["part"]: part["result"] for part in report["parts"] if part["status"] == "ok"}
    assert [part["part"] for part in report["parts"]] == names and set(names) - set(found) == {"sanitizer"}

    operators = found["operators"]["cases, error, eager's"]
    modules = {"ghost_module", "cheap_concat", "ghost_module_train", "cheap_concat_train"}
    modules.add("ghost_module_train_gated")
    assert modules | {"dfc_gate_train", "squeeze_excite", "depthwise"} == set(operators)
    for dtypes in operators.values():
        assert set(dtypes) == {"float16", "bfloat16", "float32"}
        assert any("gradient" in what for what in dtypes["float32"])
    kinds = ["bfloat16, memory=balanced", "bfloat16, memory=low", "bfloat16, memory=balanced, cuda_graph=True"]
    for part, expected in (("bottlenecks", [f"bfloat16, memory={kind}" for kind in MEMORY]), ("nets", kinds)):
        assert list(found[part]) == expected
        assert all(row["results"] > 100 and row["wrong"] == [] for row in found[part].values())
    assert found["nets"][kinds[2]]["replayed"] == 0 and "CUDA" in found["nets"][kinds[2]]["not replayed, since"][0]
    rows = {row["baseline"]: row for row in found["training"]["ready"]}
    assert {"ghost_ops.fuse", "ghost_ops.fuse, memory=low", "eager, channels_last"} <= set(rows)
    assert rows["ghost_ops.fuse"]["saved_bytes"] > rows["ghost_ops.fuse, memory=low"]["saved_bytes"] > 0
    beside = [row["baseline"] for row in found["training"]["torch.compile default"]]
    assert beside == ["ghost_ops.fuse", "eager, channels_last", "torch.compile default"]
    assert {"ghost_ops.freeze", "ghost_ops.fuse"} <= {r["baseline"] for r in found["inference"]["batch 1"]["ready"]}
    assert {r["status"] for rows in found["training"].values() for r in rows} == {"ok"}
    for traced in found["launches"].values():
        assert {row[0] for row in traced["launches"]} == set(range(len(traced["names"])))
        assert traced["kernels_us"] > 0 and all(len(row) == 5 for row in traced["launches"])
    assert len(found["launches"]["a training step, ghost_ops.fuse"]["launches"]) > 100
    assert len(found["launches"]) == 4 and all(value > 0 for value in found["host"].values())
    assert sum(found["tests"]["skipped"].values()) > 5 and found["tests"]["failed"] == []


def test_torch_compile_is_warmed_up(one_thread):
    from gpu_check_parts import speed

    told = []
    found = speed.warm_compiler({"dry": True}, told.append)
    assert found == told[-1] == {
        "training, torch.compile default": "ok", "inference at batch 1, torch.compile default": "ok",
    }  # fmt: skip


def test_the_kernels_of_the_parts_are_known_ahead(monkeypatch, one_thread):
    """Those that a step, a call of the frozen net, a bottleneck and the operators start; each once."""
    pytest.importorskip("triton")
    from gpu_check_parts import kernels
    from gpu_check_parts.runner import Skipped

    compiled = []
    monkeypatch.setattr(kernels, "compile_all", lambda found, *_: compiled.extend(found) or {})
    found = kernels.kernels({"dry": True}, lambda result: None)
    assert found["kernels"] > 100 and found["errors"] == {} and not compiled
    monkeypatch.setattr(kernels, "runs", lambda device: kernels.host.calls(device, torch.float16).values())
    assert kernels.compile_ahead("sm_90", 1, lambda count: None, lambda kernel: None) == {}
    names = [kernel.name for kernel in compiled]
    assert {"product_kernel", "cheap_kernel", "depthwise_kernel"} <= set(names) and len(compiled) == len(set(compiled))
    with pytest.raises(Skipped, match="a cache was given"):
        kernels.kernels({"dry": True, "cache": True}, lambda result: None)


HANGING = """
import os, time
import pytest

def test_passes(): pass
def test_fails(): assert 1 == 2
def test_hangs(): time.sleep(600)
@pytest.mark.skip(reason="no device")
def test_is_skipped(): pass
def test_comes_last(): pass
"""


def test_a_test_that_hangs_ends_alone(tmp_path, benchmarks):
    from gpu_check_parts import device_tests, time_limit

    (tmp_path / "test_some.py").write_text(HANGING)
    told = tmp_path / "told.jsonl"
    plugins = ["-p", "gpu_check_parts.time_limit", "-p", "no:cacheprovider", "-n", "1"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, "test_some.py"]
    more = {time_limit.TOLD: str(told), time_limit.SECONDS: "3", "PYTHONPATH": f"{ROOT}:{benchmarks}"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, **more})
    found = device_tests._figures(told)
    assert done.returncode and found["passed"] == 2 and list(found["skipped"].values()) == [1], done.stdout[-2000:]
    failed, hung = sorted(found["failed"])
    assert failed.startswith("test_some.py::test_fails") and hung.startswith("test_some.py::test_hangs")
    assert "1 == 2" in failed


def test_every_file_of_gpu_tests_is_run():
    from gpu_check_parts import device_tests

    assert {ROOT / file for file in device_tests.FILES} == set((ROOT / "tests" / "gpu").glob("test_*.py"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a device is there")
def test_without_a_device_it_says_so(tmp_path):
    command = [sys.executable, "benchmarks/gpu_check.py", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "no CUDA device is there; --dry-run shows" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_trace_is_made_compact():
    from gpu_check_parts.launches import ON_DEVICE, compact

    more = {"grid": [8, 2, 1], "block": [128, 1, 1], "stream": 7}
    events = [
        {"cat": "cpu_op", "name": "aten::add", "ts": 1.0, "dur": 9.0},
        {"cat": "kernel", "name": "b", "ts": 30.0, "dur": 2.0, "args": more},
        {"cat": "gpu_memset", "name": "a", "ts": 20.5, "dur": 1.25, "args": {}},
        {"cat": "kernel", "name": "b", "ts": 40.0, "dur": 3.0, "args": more},
        {"name": "process_name", "ph": "M", "ts": 0},
    ]
    size = [[8, 2, 1], [128, 1, 1]]
    launched = [[0, [], [], 1.25, 0.0], [1, *size, 2.0, 9.5], [1, *size, 3.0, 19.5]]
    assert compact(events, ON_DEVICE) == {"kernels_us": 6.25, "launches": launched, "names": ["a", "b"]}


def spoil(net: torch.nn.Module, share: float) -> torch.nn.Module:
    """Lets one gradient of a net be wrong by a share of itself."""
    weights = {name: p for name, p in net.named_parameters() if name.endswith("cheap_operation.0.weight")}
    next(iter(weights.values())).register_hook(lambda grad: grad * (1 + share))
    return net


@pytest.mark.parametrize("part, share", [("bottlenecks", 0.5), ("nets", 1.0)])
def test_a_wrong_gradient_is_found(part, share, monkeypatch, one_thread):
    from gpu_check_parts import gradients, runner

    right, told = gradients.fused, []
    monkeypatch.setattr(gradients, "fused", lambda module, **options: spoil(right(module, **options), share))
    with pytest.raises(runner.Wrong, match=r"gradient of .*cheap_operation\.0\.weight"):
        getattr(gradients, part)({"dry": True}, told.append)
    assert all(row["wrong"] for row in told[-1].values())


def test_a_wrong_operator_is_found(monkeypatch, one_thread):
    from gpu_check_parts import gradients, runner

    from tests.gpu import test_operators as tests

    right, told = tests.results, []

    def results(kind, case, reference, differentiable):
        found = right(kind, case, reference, differentiable)
        if kind == "squeeze_excite" and not reference:
            found["gradient of reduce_weight"] = found["gradient of reduce_weight"] * 1.05
        return found

    monkeypatch.setattr(tests, "results", results)
    with pytest.raises(runner.Wrong, match="squeeze_excite, float16"):
        gradients.operators({"dry": True}, told.append)
    assert all("squeeze_excite" in found for found in told[-1]["wrong"]) and len(told[-1]["wrong"]) >= 3


def test_a_step_with_a_wrong_gradient_has_no_speed(one_thread):
    from gpu_check_parts import cases, speed
    from gpu_check_parts.runner import Wrong

    import ghost_ops
    from ghost_ops.bench.gpu import Device, Step, Training

    contest = Training(Device(True), cases.train_case(Device(True)), 2, torch.bfloat16)
    ways = {"right": Step(ghost_ops.fuse), "wrong": Step(lambda net: spoil(ghost_ops.fuse(net), -2.0))}
    right, wrong = contest.run(ways, 1)
    assert right.seconds > 0 and wrong.seconds is None and wrong.status == "wrong"
    with pytest.raises(Wrong, match=r"wrong: gradient of .*cheap_operation\.0\.weight"):
        speed._verdict({"ready": speed._brief([right, wrong])})


@pytest.mark.parametrize("spoilt", [None, torch.ones(3), torch.full((4,), torch.nan)])
def test_missing_and_broken_results_are_wrong(spoilt):
    from ghost_ops.bench.comparison import Comparison

    right = {"a": torch.ones(4, dtype=torch.float64), "zero": torch.zeros(4, dtype=torch.float64)}
    eager = {"a": torch.ones(4) + 1e-4, "zero": torch.full((4,), 1e-6)}
    for zero, expected in ((2e-6, 1), (1e-3, 2)):
        comparison = Comparison(torch.float32)
        ours = {"zero": torch.full((4,), zero)} | ({} if spoilt is None else {"a": spoilt})
        comparison.add("it", ours, eager, right)
        assert len(comparison.judge()["wrong"]) == expected


def test_a_cache_travels(tmp_path):
    import gpu_check
    import kernel_cache

    before = os.environ.get("TRITON_CACHE_DIR")
    there = tmp_path / "there" / "KEY"
    there.mkdir(parents=True)
    names = ("kernel.cubin", "kernel.json", "kernel.ttir")
    for name in names:
        (there / name).write_text(name)
    (there / "__grp__kernel.json").write_text(json.dumps({"child_paths": {n: str(there / n) for n in names}}))
    kernel_cache.pack(there.parent, tmp_path / "kernels.tar.xz")
    here = tmp_path / "here"
    kernel_cache.unpack(tmp_path / "kernels.tar.xz", here)
    assert sorted(p.name for p in here.glob("*/*")) == ["__grp__kernel.json", "kernel.cubin", "kernel.json"]
    with gpu_check.triton_cache(tmp_path / "kernels.tar.xz"):
        unpacked = Path(os.environ["TRITON_CACHE_DIR"])
        at = json.loads((unpacked / "KEY" / "__grp__kernel.json").read_text())["child_paths"]["kernel.cubin"]
        assert Path(at).read_text() == "kernel.cubin" and unpacked in Path(at).parents
    assert os.environ.get("TRITON_CACHE_DIR") == before and not unpacked.exists()
    group = json.loads((here / "KEY" / "__grp__kernel.json").read_text())["child_paths"]
    assert group["kernel.cubin"] == str(here / "KEY" / "kernel.cubin")
    with pytest.raises(ValueError, match=r"expected a name in \.xz"):
        kernel_cache.pack(here, tmp_path / "kernels.zip")
