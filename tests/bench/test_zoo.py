import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from benchmarks.nets import ZOO, ZooNet
from benchmarks.nets.blocks import ArticleGhostModule, conv_bn
from ghost_ops.bench import zoo
from ghost_ops.bench.machine import Unavailable
from ghost_ops.bench.outputs import as_one
from ghost_ops.bench.report import read_json, render, to_json
from ghost_ops.bench.results import FAILED, MISSING, OK, WRONG
from ghost_ops.bench.run import new_report
from ghost_ops.cli import main

FAST = {"rounds": 1, "min_seconds": 1e-4}
LIBRARIES = "huggingface", "ultralytics", "pytorch"
WITHOUT_LIBRARY = [name for name, net in ZOO.items() if net.source.partition("/")[0] not in LIBRARIES]


class Small(nn.Module):
    """A Ghost module between plain layers; of ``heads`` there are several outputs."""

    def __init__(self, heads=False):
        super().__init__()
        self.stem, self.ghost = conv_bn(3, 8, 3, 2, act=nn.ReLU()), ArticleGhostModule(8, 16)
        self.head, self.heads = nn.Conv2d(16, 5, 1), heads

    def forward(self, x):
        y = self.ghost(self.stem(x))
        return (y, {"head": self.head(y)}) if self.heads else self.head(y).mean((2, 3))


def missing():
    raise Unavailable("somelib is not installed: pip install somelib")


def broken():
    raise ValueError("no such net")


class Wrong(Small):
    """Eager in float32 is far from float64."""

    def forward(self, x):
        y = super().forward(x)
        return y if x.dtype == torch.float64 else y * 1.5


@pytest.fixture
def small_zoo(monkeypatch):
    nets = {
        "small": ZooNet(Small, "drawn", 16),
        "heads": ZooNet(lambda: Small(heads=True), "drawn", 16),
        "deployed": ZooNet(Small, "drawn", 16, trains=False),
        "missing": ZooNet(missing, "drawn", 16),
        "broken": ZooNet(broken, "drawn", 16),
    }
    monkeypatch.setattr(zoo, "ZOO", nets)
    zoo._work.cache_clear()
    yield
    zoo._work.cache_clear()


def run(name, **options):
    (case,) = zoo.zoo_cases([name])
    rows = zoo.run_zoo_case(case, 2, 1, zoo.zoo_baselines(lambda name: "openvino" not in name), **FAST)
    return {row.baseline: row for row in rows}


@pytest.mark.parametrize("name", ["small", "heads"])
def test_every_way_is_right_and_timed(small_zoo, name):
    rows = run(name)
    assert list(rows) == ["ghost_ops", "frozen", "eager", "folded"]
    for row in rows.values():
        assert row.status in (OK, MISSING), row.reason
        assert row.status == MISSING or (row.seconds > 0 and row.error < 1e-6)
    assert rows["ghost_ops"].note == "1 of 1 Ghost modules"
    assert rows["eager"].speedups.keys() >= {"ghost_ops"}
    assert rows["eager"].flops == 2 * 2 * 8 * 8 * (27 * 8 + 8 * 8 + 9 * 8 + 16 * 5)


def test_a_wrong_result_has_no_speed(small_zoo, monkeypatch):
    monkeypatch.setitem(zoo.ZOO, "small", ZooNet(Wrong, "drawn", 16))
    rows = run("small")
    assert {row.status for row in rows.values()} <= {WRONG, MISSING}
    assert all(row.seconds is None for row in rows.values())


def test_what_is_missing_or_fails_is_a_row(small_zoo):
    assert {(row.status, row.reason) for row in run("missing").values()} == {
        (MISSING, "somelib is not installed: pip install somelib")
    }
    assert {row.status for row in run("broken").values()} == {FAILED}
    assert all("no such net" in row.reason for row in run("broken").values())


def train(name):
    (case,) = zoo.zoo_cases([name])
    return {row.baseline: row for row in zoo.run_zoo_training(case, 4, 1, lambda name: True, rounds=1)}


def test_training(small_zoo):
    for name in ("small", "heads"):
        rows = train(name)
        assert rows.keys() == {"ghost_ops", "eager"}
        for row in rows.values():
            assert (row.status, row.reason) == (OK, "") and row.error < 1e-5
        assert 0 < rows["ghost_ops"].saved_bytes < rows["eager"].saved_bytes
    assert train("deployed") == {}
    assert {row.status for row in train("missing").values()} == {MISSING}
    assert {row.status for row in train("broken").values()} == {FAILED}


def test_report(small_zoo, tmp_path):
    report = new_report({}, [])
    for name in ("small", "heads", "missing"):
        report.results += [*run(name).values(), *train(name).values()]
    path = tmp_path / "zoo.json"
    path.write_text(to_json(report))
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as capture:
        console.print(render(read_json(path)))
    text = capture.get()
    assert "Other people's nets, batch 2" in text and "Other people's nets, training step" in text
    assert "1 of 1 Ghost modules" in text and "small@16" in text and "somelib is not installed" in text


def test_command_line(small_zoo):
    options = "--quick", "--rounds", "1", "--json", "-"
    result = CliRunner().invoke(main, ["bench", "--zoo", "--only", "small", *options])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    kinds = {(row["kind"], row["case"], row["batch"], row["threads"]) for row in found["results"]}
    assert kinds == {("zoo", "small@16", 1, 1), ("zoo_train", "small@16", 2, 2)}
    assert found["settings"]["parts"] == ["zoo"]
    result = CliRunner().invoke(main, ["bench", "--zoo", "--only", "nobody", *options])
    assert result.exit_code == 2 and "'nobody' is in no name" in result.output


@pytest.mark.parametrize("name", WITHOUT_LIBRARY)
def test_the_nets_that_are_written_here_run(name):
    side = ZOO[name].side
    net = zoo.ZooCase(name, side).build()
    with torch.no_grad():
        out = as_one(net(torch.zeros(1, 3, side, side)))
    assert out.shape[0] == 1 and bool(out.isfinite().all())


def test_every_net_has_a_source():
    assert all(net.source and net.side >= net.train_side > 0 for net in ZOO.values())


def test_statistics_are_of_images():
    """As after training: what a BatchNorm makes of such images has the mean and deviation that its parameters say."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.2), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    images = torch.randn(4, 3, 9, 9) * 30 + 7
    zoo.take_statistics(net, images)
    assert [net[1].momentum, net[3].momentum] == [0.2, 0.1]
    out = net.eval()(images)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(out.var((0, 2, 3)), torch.ones(4), rtol=0, atol=1e-2)
