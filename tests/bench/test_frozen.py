import json

import pytest
import torch
from torch import nn

from ghost_ops import models
from ghost_ops.backends import native
from ghost_ops.bench import engines, frozen, other_models, parts
from ghost_ops.bench.baselines import FROZEN, FROZEN_BFLOAT16, Built, fold
from ghost_ops.bench.cases import NetCase, draw_images, draw_map, randomise
from ghost_ops.bench.machine import Unavailable
from ghost_ops.bench.report import render, to_json
from ghost_ops.bench.results import MISSING, OK, WRONG, error_of
from ghost_ops.bench.roofline import Limits
from ghost_ops.bench.run import agreement, new_report

LIMITS = Limits(1, 1e11, "made up", {"L2": 1e11, "L3": 5e10, "DRAM": 1e10}, {"L2": 1 << 20, "L3": 1 << 24})
FAST = {"rounds": 1, "min_seconds": 1e-4}
needs_kernels = pytest.mark.skipif(not native.available(), reason="programs need the native library")


def run(cases, dtype="float32", names=(FROZEN, FROZEN_BFLOAT16, "eager")):
    return frozen.run_frozen(cases, 1, 1, dtype, lambda name: name in names, LIMITS, **FAST)


def test_cases_chosen_by_name():
    names = lambda *patterns, dtype="float32": [case.name for case in frozen.choose_cases(patterns, dtype)]
    assert names() == ["ghostnet_100", "mobilenetv3_large_100", "mobilenetv2_100", "resnet18"]
    assert names("050", "@160") == ["ghostnet_050", "ghostnet_100@160"]
    assert names(dtype="bfloat16") == ["ghostnet_100"] and names("nothing") == []


def test_plain_parts_compute_the_net():
    net, x = NetCase("ghostnet_050", 32, kind="frozen").build(), draw_images(2, 32, 0)
    found = list(parts.plain_parts(net))
    names = [name for name, _ in found]
    assert names[:2] == ["stem", "blocks.0.0"] and names[-1] == "tail" and len(names) == 1 + 16 + 1
    with torch.no_grad():
        assert torch.equal(nn.Sequential(*(part for _, part in found))(x), net(x))


@needs_kernels
def test_a_frozen_net_and_its_parts(short_net):
    rows, found = run([NetCase("ghostnet_050", 32, kind="frozen")])
    assert [(row.baseline, row.status) for row in rows] == [(FROZEN, OK), ("eager", OK)]
    assert all(row.error < 1e-5 and row.speedup == row.speedups[FROZEN] for row in rows)
    assert [part.part for part in found] == ["stem", "blocks.0.0", "blocks.1.0", "tail", "net"]
    assert {part.status for part in found} == {OK} and all(part.error < 1e-5 for part in found)
    *each, whole = found
    assert sum(part.flops for part in each) == whole.flops == NetCase("ghostnet_050", 32).flops(1)
    for part in found:
        assert part.roof == LIMITS.roof(part.flops, part.bytes) and part.share == part.roof / part.seconds
        assert part.peak_share == pytest.approx(part.flops / part.seconds / LIMITS.flops)
    report = new_report({}, [LIMITS])
    report.results, report.parts = rows, found
    assert [part["part"] for part in json.loads(to_json(report))["parts"]] == [part.part for part in found]


@needs_kernels
def test_parts_move_input_output_and_packed_weights(short_net):
    case = NetCase("ghostnet_050", 32, kind="frozen")
    found, halves = (parts.run_parts(case, 1, 1, dtype, LIMITS, **FAST) for dtype in ("float32", "bfloat16"))
    stem, half = (
        parts.frozen_part("stem", next(parts.plain_parts(case.build()))[1], dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    elements = 3 * 32 * 32 + found_channels(stem) * 16 * 16
    numbers, halved = (part.frozen_programs[0].packed.numel() for part in (stem, half))
    assert found[0].bytes == 4 * (elements + numbers)
    assert halves[0].bytes == 2 * elements + 4 * halved and halved < numbers


def found_channels(stem):
    return stem(torch.zeros(1, 3, 4, 4)).shape[1]


@needs_kernels
def test_a_wrong_part_has_no_speed(short_net, monkeypatch):
    right = parts.frozen_part
    off = lambda name, part, dtype: nn.Flatten() if name == "tail" else right(name, part, dtype)
    monkeypatch.setattr(parts, "frozen_part", off)
    found = parts.run_parts(NetCase("ghostnet_050", 32, kind="frozen"), 1, 1, "float32", LIMITS, **FAST)
    tail = next(part for part in found if part.part == "tail")
    assert tail.status == WRONG and tail.seconds is tail.share is tail.peak_share is None and not tail.samples
    assert all(part.seconds > 0 for part in found if part is not tail)


@needs_kernels
def test_bfloat16_beside_openvino(short_net, monkeypatch):
    monkeypatch.setattr("ghost_ops.bench.run.AGREED", 4)
    names = (FROZEN, FROZEN_BFLOAT16, "openvino_bfloat16")
    rows, found = run([NetCase("ghostnet_050", 32, kind="frozen_bfloat16")], "bfloat16", names)
    by_baseline = {row.baseline: row for row in rows}
    ours = by_baseline[FROZEN_BFLOAT16]
    assert (ours.status, ours.dtype) == (OK, "bfloat16") and 1e-4 < ours.error < 3e-2 and 0 <= ours.agreement <= 1
    assert by_baseline[FROZEN].error < 1e-5 and by_baseline[FROZEN].agreement is None and ours.speedup == 1
    assert by_baseline["openvino_bfloat16"].status in (OK, MISSING)
    assert {part.dtype for part in found} == {"bfloat16"} and {part.status for part in found} == {OK}


def test_agreement_counts_images_and_puts_the_input_back():
    module = nn.Sequential(nn.AvgPool2d(8), nn.Flatten())
    x = draw_map(2, 3, 8)
    before = x.clone()
    assert agreement(Built(lambda: module(x), input=x), module, 4) == 1 and torch.equal(x, before)
    assert agreement(Built(lambda: -module(x), input=x), module, 4) == 0
    assert agreement(Built(lambda: module(x)), module, 4) is None
    choices = module(draw_images(16, 8, 0)).argmax(1)
    assert choices.unique().numel() > 1


@pytest.mark.parametrize("name", other_models.OTHER_MODELS)
def test_other_models_are_converted_for_ncnn(name):
    rows, found = run([NetCase(name, 32, kind="other_model")], names=("eager", "ncnn"))
    assert [row.baseline for row in rows] == ["ncnn"] and not found, "of other nets only engines"
    assert rows[0].status in (OK, MISSING), rows[0].reason
    assert rows[0].speedup is None and (rows[0].status == MISSING or rows[0].error < 1e-4)


@needs_kernels
def test_other_models_are_set_beside_the_frozen_net(short_net, tmp_path):
    cases = [NetCase("ghostnet_050", 32, kind="frozen"), NetCase("resnet18", 32, kind="other_model")]
    rows, found = run(cases, names=(FROZEN, "eager", "ncnn"))
    ours = next(row for row in rows if row.baseline == FROZEN)
    for row in rows:
        assert row.status in (OK, MISSING)
        assert row.seconds is None or row.speedup == row.seconds / ours.seconds
    report = new_report({}, [LIMITS])
    report.results, report.parts = rows, found
    from rich.console import Console

    console = Console(width=160)
    with console.capture() as text:
        console.print(render(report))
    for words in ("resnet18", "The parts of ghostnet_050", "sum of the parts", "of peak"):
        assert words in text.get()
    pytest.importorskip("matplotlib")
    from ghost_ops.bench.plots import plot

    plot(report, tmp_path / "frozen.png")
    assert (tmp_path / "frozen.png").read_bytes().startswith(b"\x89PNG")


def test_missing_other_models_have_a_reason(monkeypatch):
    def missing():
        raise Unavailable("torchvision is not installed")

    monkeypatch.setattr(other_models, "torchvision_models", missing)
    rows, _ = run([NetCase("resnet18", 32, kind="other_model")], names=("onnxruntime",))
    assert [(row.status, row.reason) for row in rows] == [(MISSING, "torchvision is not installed")]


def test_a_graph_for_one_delegate_computes_the_same():
    net = randomise(models.ghostnet_050(num_classes=5)).eval().requires_grad_(False)
    x = draw_map(1, 3, 32)
    reference, graph = net(x), fold(net)
    slices = lambda: sum("getitem" in str(node.target) for node in graph.graph.nodes)
    assert slices() > 0
    assert error_of(engines.for_one_delegate(graph, x)(x), reference.double()) < 1e-5 and slices() == 0
    pooled = torch.fx.symbolic_trace(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten()))
    graph = engines.for_one_delegate(pooled, x)
    torch.testing.assert_close(graph(x), x.mean((2, 3)))
    assert not any(node.op == "call_module" and "0" in node.target for node in graph.graph.nodes)


def test_slices_that_cut_stay():
    graph = torch.fx.symbolic_trace(Cut())
    x = draw_map(1, 3, 4)
    assert engines.for_one_delegate(graph, x)(x).shape == (1, 2, 4, 4)


class Cut(nn.Module):
    def forward(self, x):
        return x[:, :2]
