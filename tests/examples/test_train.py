"""``examples/train.py``: what it writes, what it learns, that a resumed run gives the bits of an uninterrupted one."""

import csv
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

import ghost_ops

from .conftest import EXAMPLES


def run(train, out, *options):
    """The example, in this process; returns what it printed."""
    result = CliRunner().invoke(train.main, ["--out", str(out), *map(str, options)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rows(out):
    with (out / "log.csv").open() as file:
        return list(csv.DictReader(file))


def checkpoint(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)


def assert_same_bits(a, b, path="checkpoint"):
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same_bits(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, pair in enumerate(zip(a, b)):
            assert_same_bits(*pair, f"{path}[{i}]")
    else:
        assert a == b, path


@pytest.mark.parametrize("plain", [False, True], ids=["fused", "plain"])
def test_learns_digits(plain, train, tmp_path, monkeypatch, fused):
    nets, build = [], train.build
    monkeypatch.setattr(train, "build", lambda *args: nets.append(build(*args)) or nets[-1])
    run(train, tmp_path, "--epochs", 4, "--ema", 0.9, *(["--plain"] if plain else []))
    last = rows(tmp_path)[-1]
    assert len(rows(tmp_path)) == 4
    assert float(last["val_accuracy"]) > 0.9 and float(last["average_accuracy"]) > 0.9, last
    assert float(last["lr"]) == pytest.approx(0, abs=1e-9)
    (result,) = nets
    ran = str(ghost_ops.explain(result.net.train(), torch.randn(4, 1, 16, 16)))
    assert ran.count("ghost_module_train on native") == (0 if plain else 10), ran
    from PIL import Image

    picture = Image.open(tmp_path / "curves.png").convert("RGB")
    assert len(picture.getcolors(maxcolors=2**24)) > 50
    saved = checkpoint(tmp_path)
    assert_same_bits(saved["model"], dict(result.net.state_dict()))
    assert saved["average"].keys() == result.average.state_dict().keys()


RUNS = {
    "digits": ("--batch-size", 96, "--accumulate", 2, "--ema", 0.9, "--amp", "bfloat16", "--side", 8),
    "folder": ("--arch", "ghostnet_050", "--batch-size", 8, "--side", 32, "--ema", 0.9),  # dropout, augmentation
}


@pytest.mark.parametrize("name, stop", [("digits", 10), ("folder", 3)])
def test_resumes_to_the_bit(name, stop, train, tmp_path, folder):
    """Stopped within the first epoch, and in the second, between two checkpoints."""
    options = (*RUNS[name], "--epochs", 2, *(("--data", folder) if name == "folder" else ()))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(train, whole, *options)
    assert "go on with --resume" in run(train, parts, *options, "--stop-after", stop)
    assert checkpoint(parts)["place"]["step"] == stop
    torch.manual_seed(99)
    run(train, parts, *options, "--resume")
    assert_same_bits(checkpoint(whole), checkpoint(parts))
    assert (whole / "log.csv").read_bytes() == (parts / "log.csv").read_bytes()
    run(train, tmp_path / "other", *options, "--seed", 1, "--stop-after", 1)
    assert not torch.equal(*(checkpoint(tmp_path / n)["optimizer"]["state"]["classifier.weight"]["momentum_buffer"]
                             for n in ("whole", "other")))  # fmt: skip


def test_a_checkpoint_between_epochs_and_its_interval(train, tmp_path, monkeypatch):
    saved, save = [], train.Run.save
    monkeypatch.setattr(train.Run, "save", lambda self, *args: saved.append(self.place.step) or save(self, *args))
    run(train, tmp_path, "--epochs", 1, "--side", 8, "--batch-size", 200, "--checkpoint-every", 3)
    assert saved == [3, 6, 7]


def test_accumulation_is_the_mean_of_the_batches(train, tmp_path):
    """One step over three batches, by hand."""
    options = ["--batch-size", 10, "--accumulate", 3, "--side", 8, "--warmup", 0, "--weight-decay", 0, "--plain"]
    run(train, tmp_path, *options, "--stop-after", 1)
    torch.manual_seed(0)
    net = train.SmallGhostNet().to(memory_format=torch.channels_last).train()
    data = train.images.load(None, 8, 0)[0]
    batches = train.images.train_batches(len(data), 10, 3, seed=0, epoch=0, rank=0, world=1)[:3]
    loss = sum(F.cross_entropy(net(data[batch][0]), data[batch][1]) for batch in batches) / 3
    loss.backward()
    saved = checkpoint(tmp_path)["model"]
    for name, p in net.named_parameters():
        torch.testing.assert_close(saved[name], (p - 0.1 * 1.9 * p.grad).detach())  # Nesterov's first step
    for name, buffer in net.named_buffers():
        torch.testing.assert_close(saved[name], buffer)


def torchrun(out, *options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    result = subprocess.run(
        [*command, str(EXAMPLES / "train.py"), "--out", str(out), *map(str, options)],
        capture_output=True, text=True, timeout=400, env=os.environ | environment, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


PAIR = ("--side", 16, "--batch-size", 4, "--accumulate", 2, "--epochs", 2, "--ema", 0.9)


def test_torchrun_with_two_processes(tmp_path, folder):
    output = torchrun(tmp_path, "--data", folder, *PAIR, "--sync-bn")
    assert output.count("epoch 1 ") == 1  # one of the two speaks
    saved = checkpoint(tmp_path)
    assert len(saved["processes"]) == 2 and saved["place"]["step"] == 2 * (39 // 16)
    first, second = (process["buffers"] for process in saved["processes"])
    assert_same_bits(first, second)
    assert len(rows(tmp_path)) == 2


def test_a_sharded_run_resumes_to_the_bit(tmp_path, folder):
    whole, parts, options = tmp_path / "whole", tmp_path / "parts", ("--data", folder, *PAIR, "--fsdp")
    torchrun(whole, *options)
    torchrun(parts, *options, "--stop-after", 3)
    torchrun(parts, *options, "--resume")
    assert_same_bits(checkpoint(whole), checkpoint(parts))
    assert (whole / "log.csv").read_bytes() == (parts / "log.csv").read_bytes()


BAD = {
    "no such folder": (("--data", "nowhere"), "nowhere"),
    "no split": (("--data", "{empty}"), "expected the folders train and val"),
    "architecture": (("--arch", "resnet"), "ghostnet_050"),
    "batch": (("--batch-size", "1"), "x>=2"),
    "epochs": (("--epochs", "0"), "x>=1"),
    "average": (("--ema", "1"), "is not in the range 0"),
    "warm-up": (("--epochs", "2", "--warmup", "3"), "expected at most the 2 epochs"),
    "float16": (("--amp", "float16"), "float16 needs a GPU"),
    "memory of a plain net": (("--plain", "--memory", "low"), "--memory is of fused nets"),
    "graphs of a plain net": (("--plain", "--cuda-graph"), "--cuda-graph is of fused nets"),
    "too large a step": (("--batch-size", "1000", "--accumulate", "2"), "1437 images in one step, got 1000 a batch"),
    "nothing to resume": (("--resume",), "there is no"),
    "diverges": (("--epochs", "1", "--lr", "1e30", "--warmup", "0", "--side", "8"), "try a lower --lr"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name, train, tmp_path):
    if name == "float16" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    options, message = BAD[name]
    options = [option.format(empty=tmp_path) for option in options]
    result = CliRunner().invoke(train.main, ["--out", str(tmp_path / "out"), *options])
    assert result.exit_code in (1, 2) and message in " ".join(result.output.split()), result.output
    assert "Traceback" not in result.output


def test_resume_refuses_other_options(train, tmp_path):
    run(train, tmp_path, "--side", 8, "--stop-after", 1)
    result = CliRunner().invoke(train.main, ["--out", str(tmp_path), "--side", "8", "--lr", "0.2", "--resume"])
    assert result.exit_code == 2 and "lr 0.1, now 0.2" in " ".join(result.output.split()), result.output
