"""Nets that have Ghost modules in them, as people run them, and three without, by name: what ``bench --zoo`` times.

Those of a library are built by it where it is installed; the others are written here in the structure of their source,
or are ghost_ops' own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ghost_ops.bench.machine import Unavailable, need
from ghost_ops.bench.other_models import OTHER_MODELS, torchvision_models
from ghost_ops.models import ghost_resnet50, ghost_resnet56, ghost_vgg16

from . import classifiers, detectors

TRAIN_SIDE = 320  # of larger images a step takes tens of seconds on a CPU


@dataclass(frozen=True)
class ZooNet:
    """A net.

    Attributes:
        build: the net, in training mode; raises ``Unavailable`` where its library is missing.
        source: the project and what it calls the net.
        side: height and width of the images that it is run on.
        trains: whether it is what people train, not what they make of it afterwards.
        train_side: height and width in a training step.
    """

    build: Callable[[], nn.Module]
    source: str
    side: int = 224
    trains: bool = True

    @property
    def train_side(self) -> int:
        return min(self.side, TRAIN_SIDE)


def _timm(name: str, deployed: bool = False) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        need("timm", command="pip install --no-deps timm torchvision")
        torchvision_models()  # which timm imports
        import timm

        net = timm.create_model(name)
        if not deployed:
            return net
        from timm.utils.model import reparameterize_model

        return reparameterize_model(net.eval()).train()

    return build


def _yolo(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        need("ultralytics", command="pip install --no-deps ultralytics opencv-python-headless")
        torchvision_models()
        try:
            from ultralytics.nn.tasks import DetectionModel
        except ImportError as error:
            raise Unavailable(f"ultralytics does not load: {error}") from error
        net = DetectionModel(name, verbose=False)
        net.model[-1].export = True  # in eval its head then returns only the boxes
        return net

    return build


TIMM, ARTICLE = "huggingface/pytorch-image-models", "Han et al., arXiv:1911.11907, tables 5 and 6"
FACE = "Hazqeel09/GhostFaceNet, after HamadYA/GhostFaceNets"
ZOO = {
    "ghostnet_100": ZooNet(_timm("ghostnet_100"), TIMM),
    "ghostnetv2_100": ZooNet(_timm("ghostnetv2_100"), TIMM),
    "ghostnetv3_100": ZooNet(_timm("ghostnetv3_100"), f"{TIMM}, in training form"),
    "ghostnetv3_100_deployed": ZooNet(
        _timm("ghostnetv3_100", True), f"{TIMM}, after reparameterize_model", trains=False
    ),
    "repghostnet_100": ZooNet(_timm("repghostnet_100"), f"{TIMM}, in training form"),
    "repghostnet_100_deployed": ZooNet(
        _timm("repghostnet_100", True), f"{TIMM}, after reparameterize_model", trains=False
    ),
    "nanodet_ghost_pan": ZooNet(detectors.GhostPAN, "RangiLyu/nanodet, GhostPAN over its GhostNet", 320),
    "ghostfacenet_v1": ZooNet(classifiers.GhostFaceNet, FACE, 112),
    "ghostfacenet_v2": ZooNet(lambda: classifiers.GhostFaceNet(attention=True), FACE, 112),
    "yolov8n_ghost": ZooNet(_yolo("yolov8n-ghost.yaml"), "ultralytics/ultralytics, yolov8n-ghost.yaml", 640),
    "ghost_resnet50": ZooNet(ghost_resnet50, "huawei-noah, ghost_resnet.py, s = 2"),
    "ghost_resnet56": ZooNet(ghost_resnet56, ARTICLE, 32),
    "ghost_vgg16": ZooNet(ghost_vgg16, ARTICLE, 32),
    "picodet_esnet": ZooNet(detectors.ESNet, "PaddlePaddle/PaddleDetection, ESNet of PicoDet-M", 320),
    **{name: ZooNet(build, "pytorch/vision") for name, build in OTHER_MODELS.items()},
}
