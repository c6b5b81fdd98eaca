import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ghost_ops import models
from ghost_ops.bench import baselines, engines, machine
from ghost_ops.bench.baselines import BASELINES, FROZEN, FUSED, TARGETS, Baseline, Built, fold
from ghost_ops.bench.cases import ModuleCase, NetCase, draw_map, randomise
from ghost_ops.bench.report import read_json, render, to_json
from ghost_ops.bench.resident import add_resident
from ghost_ops.bench.results import FAILED, MISSING, OK, WRONG, Result, error_of, relate
from ghost_ops.bench.roofline import Limits
from ghost_ops.bench.run import new_report, run_case
from ghost_ops.bench.summary import summarise
from ghost_ops.bench.training import FUSED_LOW, STEPS, TrainCase, TrainModuleCase, gradients, run_training
from ghost_ops.surgery.saved import saved_bytes

CASE = ModuleCase(8, 24, 7)
LIMITS = Limits(1, 1e11, "made up", {"L2": 1e11, "L3": 5e10, "DRAM": 1e10}, {"L2": 1 << 20, "L3": 1 << 24})
FAST = {"rounds": 1, "min_seconds": 1e-4}


def run(*who, case=CASE, batch=2):
    return {row.baseline: row for row in run_case(case, batch, 1, who, limits=LIMITS, **FAST)}


def test_every_pytorch_baseline_is_right_and_timed():
    rows = run(*(b for b in baselines.baselines_of("float32") if b.group != "engine" and "compile" not in b.name))
    assert len(rows) == 8
    for row in rows.values():
        assert (row.status, row.reason) == (OK, "") and row.error < 1e-6
        assert row.seconds > 0 and row.speedup > 0 and row.share == row.roof / row.seconds
        assert row.roof == LIMITS.roof(CASE.flops(2), CASE.bytes(2))


@pytest.mark.parametrize("name", [engine.name for engine in engines.ENGINES])
@pytest.mark.parametrize("case", [CASE, ModuleCase(5, 14, 9, kernel=5, relu=False)])
def test_engines_are_right_where_they_are_installed(name, case):
    row = run(BASELINES[name], case=case)[name]
    if row.status == MISSING:
        assert "pip install" in row.reason
        pytest.skip(row.reason)
    assert row.status == OK and row.error < 1e-5, row.reason


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("out, relu", [(24, True), (24, False), (13, True)])
def test_both_two_kernel_baselines_are_right(product, out, relu):
    case = ModuleCase(8, out, 7, relu=relu)
    module, x = case.build(), case.input(2)
    two = baselines.TwoKernels(module)
    two.product = product
    assert error_of(two(x), copy.deepcopy(module).double()(x.double())) < 1e-6
    assert two(x).data_ptr() == two(x).data_ptr()


def test_compiled_baselines_are_apart_and_frozen():
    module, x = CASE.build(), CASE.input(1)
    reference = module(x)
    built = {frozen: baselines._compiled(frozen)(module, x, 1) for frozen in (False, True)}
    for ready in built.values():
        torch.testing.assert_close(ready.result(ready.call()), reference)
        ready.check()
    # a module that changes after it was frozen: only the frozen one may go on with the old weights
    module = copy.deepcopy(module)
    plain, frozen = (baselines.compile_alone(module, freezing)[0] for freezing in (False, True))
    with torch.no_grad():
        before = plain(x).clone(), frozen(x).clone()
        module.primary_conv[0].weight.mul_(2)
        after = plain(x), frozen(x)
    assert not torch.allclose(after[0], before[0])
    assert torch.allclose(after[1], before[1])


def test_folding_leaves_no_batch_norm_and_the_source_alone():
    net = randomise(models.ghostnet_050(num_classes=5)).eval()
    before = copy.deepcopy(net.state_dict())
    folded, x = fold(net), draw_map(1, 3, 64)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    with torch.no_grad():
        assert error_of(folded(x), copy.deepcopy(net).double()(x.double())) < 1e-5
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_whole_nets_run(monkeypatch):
    case = NetCase("ghostnet_100", side=64)
    wanted = [BASELINES[name] for name in (FUSED, FROZEN, "eager", "folded", "two_kernels", "ncnn")]
    rows = run(*wanted, case=case, batch=1)
    assert {row.status for row in rows.values()} <= {OK, MISSING}
    assert all(row.error < 1e-5 for row in rows.values() if row.status == OK)


def baseline(name, call):
    return Baseline(name, name, "pytorch", lambda module, x, threads: Built(lambda: call(module, x)))


def test_a_wrong_result_has_no_speed():
    calls = iter(range(1000))
    nan = baseline("nan", lambda module, x: module(x) * float("nan"))
    later = baseline("later", lambda module, x: module(x) * (1 if next(calls) == 0 else 2))
    rows = run(
        BASELINES[FUSED],
        baseline("off", lambda module, x: module(x) * 1.01),
        nan,
        baseline("cut", lambda m, x: m(x)[:1]),
    )
    for name in ("off", "nan", "cut"):
        row = rows[name]
        assert row.status == WRONG and row.seconds is row.speedup is row.share is None and not row.samples
    row = run(later)["later"]
    assert row.status == WRONG and row.seconds is None, "a result that goes wrong while it is timed"


def test_a_baseline_that_raises_or_is_missing_is_a_row(monkeypatch):
    def broken(module, x):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    rows = run(BASELINES[FUSED], baseline("broken", broken), *engines.ENGINES)
    assert rows["broken"].status == FAILED and "no such thing" in rows["broken"].reason
    for name in ("onnxruntime", "openvino", "ncnn", "executorch"):
        assert rows[name].status == MISSING and 'pip install "ghost-ops[bench]"' in rows[name].reason
    assert rows[FUSED].status == OK


def row(name, case, seconds, count=1, group="pytorch"):
    return Result("module", case, 1, 1, count, name, name, group, seconds=seconds)


def test_summary_counts_modules_and_shows_losses():
    rows = []
    for case, count, ours, eager, ort, ov in (("a", 3, 1.0, 2.0, 0.5, 4.0), ("b", 1, 1.0, 16.0, 3.0, 2.0)):
        rows += relate(
            [
                row(FUSED, case, ours, count, "target"),
                row("eager", case, eager, count),
                row("onnxruntime", case, ort, count, "engine"),
                row("openvino", case, ov, count, "engine"),
            ]
        )
    lines = {line.baseline: line for line in summarise(rows)}
    assert lines["eager"].mean == pytest.approx((2**3 * 16) ** 0.25)
    best = lines["best of ONNX Runtime and OpenVINO"]
    assert best.mean == pytest.approx((0.5**3 * 2) ** 0.25)
    assert (best.worst, best.worst_case, best.losses, best.cases) == (0.5, "a", 1, 2)
    assert lines["best of all"].mean == best.mean and FUSED not in lines
    assert {line.target for line in lines.values()} == {FUSED}


def test_summary_compares_baselines_with_each_target():
    rows = []
    for case, ours, frozen, eager in (("a", 2.0, 1.0, 4.0), ("b", 2.0, 4.0, 2.0)):
        rows += relate(
            [row(FUSED, case, ours, 1, "target"), row(FROZEN, case, frozen, 1, "target"), row("eager", case, eager)]
        )
    assert [r.speedup for r in rows if r.case == "a"] == [1, 0.5, 2]
    assert rows[2].speedups == {FUSED: 2, FROZEN: 4}
    lines = {(line.target, line.baseline): line for line in summarise(rows)}
    assert (lines[FUSED, "eager"].worst, lines[FUSED, "eager"].losses) == (1, 0)
    frozen = lines[FROZEN, "best of PyTorch"]
    assert (frozen.mean, frozen.worst, frozen.worst_case, frozen.losses) == (pytest.approx(2**0.5), 0.5, "b", 1)


def test_freezing_that_finds_nothing_is_a_missing_row():
    net = nn.Sequential(nn.Linear(8, 4)).eval()
    with pytest.raises(machine.Unavailable, match="nothing of this Sequential was frozen"):
        BASELINES[FROZEN].build(net, draw_map(1, 3, 8), 1)


def test_report_is_json_and_a_table():
    report = new_report({"rounds": 1}, [LIMITS])
    off = baseline("off", lambda module, x: module(x) + 1)
    report.results += run(BASELINES[FUSED], BASELINES["eager"], off).values()
    report.results[1].error = float("inf")
    found = json.loads(to_json(report))
    assert found.keys() == {"schema", "machine", "settings", "limits", "results", "parts", "summary"}
    assert found["machine"].keys() >= {"cpu", "cores", "isa", "ghost_ops", "commit", "date", "versions", "backends"}
    assert found["results"][0].keys() == {field.name for field in dataclasses.fields(Result)}
    assert found["results"][1]["error"] is None and found["results"][2]["status"] == WRONG
    from rich.console import Console

    console = Console(width=160)
    with console.capture() as text:
        console.print(render(report))
    assert "8-24@7" in text.get() and "wrong" in text.get() and machine.cpu_model() in text.get()


COMMITTED = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize("name", ["turin-frozen", "turin-modules", "emerald-train", "milan-train-modules"])
def test_committed_results_are_read_and_drawn(name, tmp_path):
    """They were written before the names of today."""
    report = read_json(COMMITTED / f"{name}.json")
    assert {result.group for result in report.results} <= {"target", "pytorch", "engine"}
    assert any(result.baseline in TARGETS and result.seconds for result in report.results)
    found = [line.mean for line in report.summary()]
    assert found == [line["mean"] for line in json.loads((COMMITTED / f"{name}.json").read_text())["summary"]]
    (tmp_path / "again.json").write_text(to_json(report))
    assert read_json(tmp_path / "again.json").results == report.results
    pytest.importorskip("matplotlib")
    from ghost_ops.bench.plots import plot

    plot(report, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes().startswith(b"\x89PNG")


def test_other_files_are_not_read(tmp_path):
    (tmp_path / "other.json").write_text('{"schema": 3}')
    with pytest.raises(ValueError, match="expected a report of schema 1 or 2"):
        read_json(tmp_path / "other.json")


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    from ghost_ops.bench.plots import plot

    report = new_report({}, [LIMITS])
    with pytest.raises(ValueError, match="plot: report"):
        plot(report, tmp_path / "none.png")
    report.results += run(BASELINES[FUSED], BASELINES["eager"]).values()
    plot(report, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_saved_bytes_counts_each_storage_once():
    net = nn.Linear(4, 3)
    x = torch.randn(5, 4)
    assert saved_bytes(lambda: net(x).exp(), net) == 4 * (5 * 4 + 5 * 3)
    a = torch.randn(6, requires_grad=True)
    assert saved_bytes(lambda: (a * a).sum() + (a[1:] * a[:-1]).sum(), net) == 4 * 6


def test_training_step():
    rows = {row.baseline: row for row in run_training(TrainCase(side=32), 4, 1, {"eager", FUSED}, rounds=1)}
    assert rows.keys() == {"eager", FUSED}
    for row in rows.values():
        assert row.status == OK, row.reason
        assert row.seconds > 0 and row.saved_bytes > 0
    case = TrainCase(side=32)
    net, (x, labels) = case.build().double(), case.batch(4)
    loss_and_gradients = gradients(case, net, net, x.double(), labels)
    assert loss_and_gradients.numel() == 1 + sum(p.numel() for p in net.parameters())


def test_training_of_a_module(monkeypatch):
    case = TrainModuleCase(CASE)
    rows = {row.baseline: row for row in run_training(case, 2, 1, {"eager", "eager_nchw", FUSED}, rounds=1)}
    assert rows.keys() == {"eager", "eager_nchw", FUSED}
    for row in rows.values():
        assert (row.status, row.reason) == (OK, "") and row.error < 1e-5
        assert row.seconds > 0 and row.saved_bytes > 0 and row.kind == "train_module"
    net, (x, grad) = case.build().double(), case.batch(2)
    found = gradients(case, net, net, x.double(), grad)
    assert found.numel() == grad.numel() + x.numel() + sum(p.numel() for p in net.parameters())

    def off(net):
        net.primary_conv[0].weight.register_hook(lambda grad: grad * 1.5)
        return net

    monkeypatch.setattr("ghost_ops.bench.training.STEPS", (dataclasses.replace(STEPS[1], prepare=off),))
    (row,) = run_training(case, 2, 1, {"eager"}, rounds=1)
    assert row.status == WRONG and row.seconds is None


def test_peak_memory_of_a_step():
    case = TrainCase(side=64)
    rows = run_training(case, 8, 1, {"eager", FUSED, FUSED_LOW}, rounds=1)
    saved = {row.baseline: row.saved_bytes for row in rows}
    assert saved[FUSED_LOW] < saved[FUSED] < saved["eager"]
    rows = [row for row in rows if row.baseline in (FUSED, "eager")]  # each is run in a process of its own
    for row in add_resident(rows, case, lambda what: None):
        assert row.status == OK, row.reason
        assert row.resident_bytes >= row.saved_bytes > 0


def test_a_wrong_gradient_has_no_speed(monkeypatch):
    def off(net):
        net.conv_stem.weight.register_hook(lambda grad: grad * 1.5)
        return net

    step = dataclasses.replace(STEPS[1], prepare=off)
    monkeypatch.setattr("ghost_ops.bench.training.STEPS", (step,))
    (row,) = run_training(TrainCase(side=32), 4, 1, {"eager"}, rounds=1)
    assert row.status == WRONG and row.seconds is None
