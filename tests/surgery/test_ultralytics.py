"""``ultralytics`` as it is installed: its own ``fuse`` before and after ours, ``predict``, ``train`` and ``val``.

It is not in the environment of `make test`: with OpenCV and polars it takes 400 MB. To run these tests:
``pip install --no-deps ultralytics ultralytics-thop opencv-python-headless polars polars-runtime-32 psutil requests``.
"""

import copy

import pytest
import torch

from ghost_ops.fused.behaviour import is_fused
from ghost_ops.surgery import explain, fuse, revert

from ..helpers import assert_as_accurate, make_map, randomise

ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
cv2 = pytest.importorskip("cv2", reason="OpenCV, which ultralytics needs, is not installed")

SIDE, FUSED = 64, 36  # 26 Ghost modules and 10 bottlenecks


def count(net):
    return sum(is_fused(module) for module in net.modules())


@pytest.fixture(scope="module")
def plain():
    return randomise(ultralytics.YOLO("yolov8n-ghost.yaml").model).eval()


@pytest.fixture(scope="module")
def fused(plain):
    return fuse(copy.deepcopy(plain))


@pytest.fixture(autouse=True)
def _own_suppression(monkeypatch):
    """ultralytics' own non-maximum suppression: the compiled one of torchvision need not load beside this torch."""
    torchvision = pytest.importorskip("torchvision")
    from ultralytics.utils.nms import TorchNMS

    monkeypatch.setattr(torchvision.ops, "nms", TorchNMS.nms)


def result(net, x):
    with torch.no_grad():
        return net(x)[0]


ORDERS = {
    "ours": ("ours",),
    "theirs, ours": ("theirs", "ours"),
    "ours, theirs": ("ours", "theirs"),
    "ours, a call, theirs": ("ours", "call", "theirs"),
}


@pytest.mark.parametrize("order", ORDERS)
def test_their_fuse_and_ours(plain, fused, order):
    x = make_map((1, 3, SIDE, SIDE))
    exact = result(copy.deepcopy(plain).double(), x.double())
    eager, net = result(plain, x), copy.deepcopy(fused if ORDERS[order][0] == "ours" else plain)
    for step in ORDERS[order]:
        if step == "theirs":
            net.fuse(verbose=False)
            assert not hasattr(net.model[1].cv1, "bn")
        elif step == "ours":
            fuse(net)
        else:
            net(x)
    assert_as_accurate(result(net, x), eager, exact)
    rows = explain(net, x).rows
    assert len(rows) == FUSED and all(row.fused and not row.why for row in rows), [row.why for row in rows if row.why]
    assert_as_accurate(result(revert(net), x), eager, exact)


def test_another_forward_on_an_instance_is_noticed(fused):
    net, x = copy.deepcopy(fused), make_map((1, 3, SIDE, SIDE))
    module = net.model[1]
    before = result(net, x)
    module.cv1.forward = module.cv1.forward_fuse  # without the BatchNorm, which is still there
    wanted = result(revert(copy.deepcopy(net)), x)
    assert not torch.allclose(before, wanted)
    torch.testing.assert_close(result(net, x), wanted, rtol=1e-4, atol=1e-4)
    module.cv1.forward = lambda x: module.cv1.conv(x) * 2
    wanted = result(revert(copy.deepcopy(net)), x)
    torch.testing.assert_close(result(net, x), wanted, rtol=1e-4, atol=1e-4)


@pytest.fixture
def data(tmp_path):
    """White squares on noise, and a description of where they are."""
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        images, labels = tmp_path / "images" / split, tmp_path / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index in range(4):
            image = torch.randint(0, 80, (SIDE, SIDE, 3), generator=generator, dtype=torch.uint8).numpy()
            x, y = torch.randint(8, 40, (2,), generator=generator).tolist()
            image[y : y + 16, x : x + 16] = 255
            assert cv2.imwrite(str(images / f"{index}.png"), image)
            (labels / f"{index}.txt").write_text(f"0 {(x + 8) / SIDE} {(y + 8) / SIDE} 0.25 0.25\n")
    path = tmp_path / "data.yaml"
    path.write_text(f"path: {tmp_path}\ntrain: images/train\nval: images/val\nnames: {{0: square}}\n")
    return path


def test_predict(fused, data):
    yolo = ultralytics.YOLO("yolov8n-ghost.yaml")
    yolo.model = copy.deepcopy(fused)
    image, found = cv2.imread(str(data.parent / "images" / "val" / "0.png")), []
    for fuse_first in (True, False):
        yolo.model = copy.deepcopy(fused) if fuse_first else revert(copy.deepcopy(fused))
        yolo.predictor = None
        (result,) = yolo.predict(image, conf=0.0, imgsz=SIDE, device="cpu", verbose=False)
        found.append(result.boxes.xywh)
    assert len(found[0]) == len(found[1]) > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-2)


def test_train_and_val(data, tmp_path):
    yolo, seen = ultralytics.YOLO("yolov8n-ghost.yaml"), {}

    def start(trainer):
        fuse(trainer.model)
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        seen.update(model=trainer.model, before=before)

    yolo.add_callback("on_train_start", start)
    options = {
        "imgsz": SIDE,
        "batch": 2,
        "workers": 0,
        "device": "cpu",
        "plots": False,
        "project": str(tmp_path / "runs"),
    }
    yolo.train(data=str(data), epochs=1, amp=False, verbose=False, **options)
    net = seen["model"]
    assert count(net) == FUSED
    moved = [name for name, p in net.named_parameters() if not torch.equal(p, seen["before"][name])]
    assert any("cv1.conv.weight" in name for name in moved)
    assert all(bool(p.isfinite().all()) for p in net.parameters())
    measured = yolo.val(data=str(data), verbose=False, **options)
    assert 0 <= measured.box.map <= 1
