"""Fused nets trained by two processes: DDP, SyncBatchNorm, FSDP2, compiled; beside plain nets in the same setting.

Operator calls are counted in the processes, so that a net that silently ran plainly fails.
"""

import dataclasses

import pytest
import torch
from torch import nn

from ..helpers import assert_as_accurate, make_map, randomise
from . import jobs
from .jobs import EXACT, FUSED, GHOSTS, PLAIN, Setting

SETTINGS = {
    "ddp": Setting(),
    "ddp, uneven batches": Setting(batches=((4, 2), (2, 3))),
    "ddp, uneven numbers of batches": Setting(batches=((2, 3, 2), (3,)), join=True),
    "ddp, accumulated": Setting(batches=((3, 2, 2), (2, 2, 4)), accumulate=True),
    "ddp, compiled": Setting(compile=True),
    "ddp, SyncBatchNorm": Setting(batches=((4, 2), (2, 3)), sync_bn=True),
    "ddp, SyncBatchNorm, fused last": Setting(batches=((4, 2), (2, 3)), sync_bn=True, fuse_last=True),
    "ddp, memory=low": Setting(batches=((4, 2), (2, 3)), memory="low"),
    "fsdp": Setting(wrap="fsdp"),
    "fsdp, memory=low": Setting(wrap="fsdp", memory="low"),
    "fsdp, SyncBatchNorm": Setting(wrap="fsdp", sync_bn=True),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_fused_trains_as_plain(name, ranks):
    setting = SETTINGS[name]
    kinds = {kind: ranks.run(jobs.train, kind, setting) for kind in (FUSED, PLAIN, EXACT)}
    for rank, (fused, plain, exact) in enumerate(zip(*kinds.values(), strict=True)):
        for what, value in fused["tensors"].items():
            eager, truth = plain["tensors"][what], exact["tensors"][what]
            if not value.is_floating_point():
                assert torch.equal(value, eager), what
            elif what != "gradient of stem.bias":  # nothing but rounding: BatchNorms follow
                # after several steps: each adds its rounding to what the one before has left in every parameter, by
                # another path in both nets, so that the ratio of two errors is one of two random numbers; and sums over
                # processes have an order of their own
                assert_as_accurate(value, eager, truth, factor=4.0, what=f"process {rank}: {what}", ulps=64)
        assert not plain["counts"]
        steps = len(setting.batches[rank])
        if not setting.compile:
            expected = 0 if setting.sync_bn else GHOSTS * steps
            for operator in ("ghost_module_train", "ghost_module_train_backward"):
                assert fused["counts"].get(operator, 0) == expected, fused["counts"]
            assert fused["counts"]["squeeze_excite"] == 2 * steps * (1 + (setting.memory == "low"))
            again = [why for why in fused["runs"].values() if "computed again" in why]
            assert len(again) == 2 * (setting.memory == "low"), fused["runs"]
            modules = [why for why in fused["runs"].values() if "ghost_module_train" in why or "SyncBatch" in why]
            assert len(modules) == GHOSTS - 2 * len(again), fused["runs"]
            assert all(("SyncBatchNorm uses the statistics of all processes" in why) == setting.sync_bn
                       for why in modules)  # fmt: skip
    if not setting.join:
        for what, value in kinds[FUSED][0]["tensors"].items():
            if "running" not in what and what != "losses" and "batches" not in what:
                assert torch.equal(value, kinds[FUSED][1]["tensors"][what]), f"the processes differ in {what}"


@pytest.mark.parametrize("memory", ["balanced", "low"])
def test_the_older_fsdp(memory, ranks):
    fused, plain = (ranks.run(jobs.fsdp1, kind, memory) for kind in (FUSED, PLAIN))
    for ours, theirs in zip(fused, plain, strict=True):
        for what, value in ours["tensors"].items():
            torch.testing.assert_close(value, theirs["tensors"][what], rtol=1e-4, atol=1e-5, msg=what)
        again = [runs for runs in ours["runs"].values() if "computed again" in runs]
        assert len(again) == 2 * (memory == "low"), ours["runs"]


@pytest.mark.parametrize("kind", [FUSED, PLAIN])
@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_sync_batch_norm_over_uneven_batches_is_the_full_batch(wrap, kind, ranks):
    """In float64, so that nothing but the meaning can differ; fused nets run plainly there, and say so."""
    setting = Setting(batches=((4, 2), (2, 3)), sync_bn=True, wrap=wrap, double=True)
    expected = jobs.full_batch(setting)
    for result in ranks.run(jobs.train, kind, setting):
        for what, value in expected.items():
            if what == "gradient of stem.bias":  # rounding alone: it moves the mean, which BatchNorm takes off
                continue
            difference = (result["tensors"][what] - value).abs().max()
            assert difference <= 1e-9, f"{what}: {difference}"


def test_without_it_the_statistics_are_each_processs_own(ranks):
    """What the test before must tell apart."""
    setting = Setting(batches=((4, 2), (2, 3)), double=True)
    expected = jobs.full_batch(setting)
    result = ranks.run(jobs.train, PLAIN, setting)[0]["tensors"]
    assert any(not torch.allclose(result[what], value, rtol=1e-3) for what, value in expected.items())


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}])
@pytest.mark.parametrize("sizes", [(5, 1), (6, 0)])
def test_the_layer_alone(sizes, options, ranks):
    results = ranks.run(jobs.sync_batch_norm, sizes, torch.float64, options)
    norm = randomise(nn.BatchNorm2d(4, **options)).double()
    x = make_map((6, 4, 3, 5), torch.float64, requires_grad=True)
    for _ in range(2):
        norm.zero_grad()
        x.grad = None
        out = norm(x)
        (out * make_map((6, 4, 3, 5), torch.float64, seed=1)).sum().backward()
    for name in ("out", "x"):
        expected = {"out": out, "x": x.grad}[name]
        torch.testing.assert_close(torch.cat([result[name] for result in results]), expected)
    for result in results:
        for name, p in norm.named_parameters():
            torch.testing.assert_close(result[name], p.grad)
        for name, b in norm.named_buffers():
            torch.testing.assert_close(result[name], b)


def test_the_layer_in_bfloat16_and_with_too_few_values(ranks):
    ours = torch.cat([r["out"] for r in ranks.run(jobs.sync_batch_norm, (2, 4), torch.bfloat16, {})])
    exact = torch.cat([r["out"] for r in ranks.run(jobs.sync_batch_norm, (2, 4), torch.float64, {})])
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), exact, rtol=0.02, atol=0.05)
    for message in ranks.run(jobs.refuses_one_value):
        assert "Expected more than 1 value per channel" in message


def test_alone_it_is_a_batch_norm():
    ours, plain = jobs.SyncBatchNorm(4), nn.BatchNorm2d(4)
    for training in (True, False):
        x = make_map((2, 4, 3, 3))
        assert torch.equal(ours.train(training)(x), plain.train(training)(x))
    assert list(ours.state_dict()) == list(plain.state_dict())
    with pytest.raises(ValueError, match="expected at least 2 dimensions"):
        ours(torch.ones(3))


def test_sharded_blocks_and_modules_run_in_one_call_each_in_eval(ranks):
    for result in ranks.run(jobs.evaluate_sharded):
        torch.testing.assert_close(result["out"], result["expected"], rtol=1e-4, atol=1e-5)
        assert result["counts"]["program_eval"] == 2 * 3, result["counts"]


def test_a_net_that_is_sharded_already_stays_plain_and_fuse_says_why(ranks):
    for warnings, kind in ranks.run(jobs.fuse_sharded):
        assert kind == "FSDPHuaweiBottleneck"
        assert len(warnings) == 1 and "one of its parameters is a DTensor" in warnings[0], warnings
        assert "Refused" not in warnings[0]


def test_settings_differ():
    """Each setting is another one: a copy and paste would test nothing."""
    assert len({dataclasses.astuple(setting) for setting in SETTINGS.values()}) == len(SETTINGS)


def test_blocks_as_graphs_in_ddp(ranks):
    """As without graphs, accumulated over two batches; and buckets do not wait for the backward of the whole net."""
    first, second = ranks.run(jobs.graphed)
    for result in (first, second):
        for name, value in result["graphs"].items():
            assert torch.equal(value, result["twin"][name]), name
        assert result["replays"] > 0
        assert len({count for count in result["ready"] if count > result["replays"] - 3}) > 1, result["ready"]
    for name, value in first["graphs"].items():
        if "running" not in name and "batches" not in name:
            assert torch.equal(value, second["graphs"][name]), f"the processes differ in {name}"


def test_sharded_blocks_run_without_graphs(ranks):
    for result in ranks.run(jobs.graphed_and_sharded):
        assert result["replays"] == 0
        assert len(result["said"]) == 3 and all("fully_shard gives its parameters memory anew" in why
                                                for why in result["said"]), result["said"]  # fmt: skip
        for name, value in result["graphs"].items():
            assert torch.equal(value, result["twin"][name]), name
