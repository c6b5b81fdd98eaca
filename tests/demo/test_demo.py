"""The whole demo in its quick form, and what its results promise."""

import copy
import io
import time

import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from ghost_ops import demo
from ghost_ops.backends import native
from ghost_ops.bench.timing import Timing
from ghost_ops.demo import digits, figure, photos, report

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The result of a quick run, what it printed, and PyTorch's threads and generator before and after."""
    folder = tmp_path_factory.mktemp("demo") / "made" / "here"
    console = Console(file=io.StringIO(), width=100)
    torch.manual_seed(7)
    states = [(torch.get_num_threads(), torch.get_rng_state())]
    result = demo.run_demo(folder / "demo.png", threads=1, quick=True, console=console)
    states.append((torch.get_num_threads(), torch.get_rng_state()))
    return result, console.file.getvalue(), states


def test_prints_every_route_and_both_trainings(shown):
    result, text, _ = shown
    for route in photos.ROUTES:
        assert route in text
    for words in (
        "left out of the quick demo",
        "test accuracy",
        "saved for backward",
        "float64",
        str(result.output.name),
    ):
        assert words in text
    assert report._milliseconds(result.photos.timings[1][photos.EAGER].median) in text
    assert f"{result.digits[digits.FUSED].last_loss:.6f}" in text


def test_writes_a_figure_that_is_not_blank(shown):
    from PIL import Image

    image = Image.open(shown[0].output)
    assert min(image.size) > 500
    assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 50


def test_leaves_threads_and_generator_as_they_were(shown):
    (threads, generator), (threads_after, generator_after) = shown[2]
    assert threads == threads_after
    assert torch.equal(generator, generator_after)


def test_every_route_was_timed_at_every_batch_size(shown):
    result = shown[0].photos
    assert len(result.timings) == 2
    for batch, timings in result.timings.items():
        missing = {route for b, route in result.missing if b == batch}
        assert set(timings) | missing == set(photos.ROUTES) and missing == {photos.COMPILED}
        assert all(timing.median > 0 for timing in timings.values())


def test_logits_agree_to_rounding(shown):
    found = shown[0].photos.agreement
    assert found.top1 == found.top5 == 1
    assert 0 < found.plain_error < 1e-5  # float32 against float64: neither exact nor far
    assert found.fused_error <= 2 * found.plain_error
    assert found.difference <= found.plain_error + found.fused_error


def test_both_trainings_see_the_same_batches(shown):
    plain, fused = shown[0].digits[digits.PLAIN], shown[0].digits[digits.FUSED]
    assert len(plain.losses) == len(fused.losses) > 0 and len(plain.epochs) == len(fused.epochs) > 0
    assert fused.losses[0] == pytest.approx(plain.losses[0], rel=1e-5)
    assert fused.losses == pytest.approx(plain.losses, rel=0.2)
    assert fused.losses[-1] < 0.9 * fused.losses[0]


@pytest.mark.skipif(not native.available(), reason="without the kernels the fused net is the plain one")
def test_the_fused_training_keeps_less(shown):
    runs = shown[0].digits
    assert runs[digits.FUSED].saved_bytes <= 0.6 * runs[digits.PLAIN].saved_bytes


def test_agreement_notices_a_net_that_differs():
    images = photos.crops(2)[:, :, :64, :64].contiguous()
    plain = photos.calibrated_net(images)
    other = copy.deepcopy(plain)
    with torch.no_grad():
        other.classifier.weight.copy_(other.classifier.weight.flip(0))
    found = photos.agreement(plain, other, images)
    assert found.difference > 0.1 and found.fused_error > 0.1 > found.plain_error
    assert found.top1 < 1 and found.top5 < 1


def test_crops_are_pixels_of_the_photographs():
    from sklearn.datasets import load_sample_images

    x = photos.crops(16)
    assert x.shape == (16, 3, 224, 224) and x.is_contiguous()
    assert len({tuple(image.flatten()[::997].tolist()) for image in x}) == 16
    pixels = x * torch.tensor(photos.STD)[:, None, None] + torch.tensor(photos.MEAN)[:, None, None]
    for image, photo in zip(pixels, load_sample_images().images):
        corner = torch.from_numpy(photo[:224, :224].copy()).permute(2, 0, 1)
        assert torch.equal((image * 255).round().byte(), corner)


def test_calibrated_statistics_are_those_of_the_images():
    images = photos.crops(3)[:, :, :96, :96].contiguous()
    net = photos.calibrated_net(images)
    assert not net.training and net.bn1.momentum == nn.BatchNorm2d(1).momentum
    stem = net.conv_stem(images)
    torch.testing.assert_close(net.bn1.running_mean, stem.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(net.bn1.running_var, stem.var((0, 2, 3)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "ratio, words", [(2, "2.00x faster"), (0.5, "2.00x slower"), (1.01, "as fast"), (0.995, "as fast"), (0.9, "slower")]
)
def test_losses_are_called_losses(ratio, words):
    assert words in report.times(ratio)


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_no_time_is_shown_for_a_wrong_result(wrong):
    right = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    routes = {photos.EAGER: lambda: right, photos.COMPILED: lambda: right * wrong, photos.FUSED_CL: lambda: right}
    results = photos.Photos(agreement=None)
    photos._drop_wrong(routes, 16, results)
    assert list(routes) == [photos.EAGER, photos.FUSED_CL] and "off by" in results.missing[16, photos.COMPILED]
    routes[photos.FUSED_CL] = lambda: right * wrong
    with pytest.raises(RuntimeError, match="ghost_ops, channels_last, batch 16: its logits are off"):
        photos._drop_wrong(routes, 16, results)


def test_the_number_of_rounds_follows_the_speed(monkeypatch):
    monkeypatch.setattr(photos, "TIMING_SECONDS", 0.2)
    assert photos._rounds({"fast": lambda: None}) == 60
    assert photos._rounds({"slow": lambda: time.sleep(0.1)}) == 5


def test_a_failing_compiler_becomes_a_note():
    def fail():
        raise RuntimeError("no compiler here\nmore")

    results = photos.Photos(agreement=None)
    with Progress(disable=True) as progress:
        why = photos._compile(fail, 1, results, progress)
        assert why == "failed with RuntimeError: no compiler here"
        assert photos._compile(lambda: None, 1, results, progress) is None
        results.compile_seconds = 1e9
        assert "left out, since compiling has taken 1000000000 s" in photos._compile(fail, 16, results, progress)


def test_figure_draws_a_slower_and_a_missing_route(tmp_path):
    same = dict.fromkeys(photos.ROUTES, Timing((0.01, 0.02), 1))
    without = {route: Timing((0.5,), 1) for route in photos.ROUTES if route != photos.COMPILED}
    results = photos.Photos(agreement=None, timings={1: same, 16: without})
    runs = {
        digits.PLAIN: digits.Run(10, 0.1, losses=[2.0, 1.0], epochs=[1.0, 1.0]),
        digits.FUSED: digits.Run(30, 0.1, losses=[2.0, 1.1], epochs=[2.0, 2.0]),
    }
    figure.draw(results, runs, tmp_path / "demo.svg", "a machine")
    assert (tmp_path / "demo.svg").stat().st_size > 10_000


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"output": "demo.bmp"}, ValueError, "output: expected a file ending in .png"),
        ({"output": "demo"}, ValueError, "output"),
        ({"output": "demo.png", "threads": 0}, ValueError, "threads: expected a positive int or None, got 0"),
        ({"output": "demo.png", "threads": 1.5}, TypeError, "threads"),
        ({"output": "demo.png", "threads": True}, TypeError, "threads"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(arguments, error, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(photos, "compare", lambda *_: pytest.fail("the demo ran"))
    with pytest.raises(error, match=words):
        demo.run_demo(**arguments)


def test_an_output_that_is_a_folder_is_refused(tmp_path):
    folder = tmp_path / "demo.png"
    folder.mkdir()
    with pytest.raises(ValueError, match="output"):
        demo.run_demo(folder)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch, tmp_path):
    find = demo.importlib.util.find_spec
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None if name == "sklearn" else find(name))
    with pytest.raises(ImportError, match=r'needs scikit-learn: pip install "ghost-ops\[demo\]"'):
        demo.run_demo(tmp_path / "demo.png")
