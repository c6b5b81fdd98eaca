"""What IMAGE names: a photograph of scikit-learn's, a digit, or a file."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import nn

from .console import failing, need
from .targets import close_to

PHOTOGRAPHS = ("china", "flower")  # of scikit-learn
_GREY = (0.299, 0.587, 0.114)  # shares of red, green and blue in brightness (ITU-R BT.601)


@dataclass(frozen=True)
class Picture:
    """An image, and its name for people.

    Attributes:
        pixels: 3 x H x W, float32, from 0 to 1.
    """

    name: str
    pixels: torch.Tensor

    def fitted(self, channels: int, size: tuple[int, int]) -> torch.Tensor:
        """The middle of the image in this shape, in this many channels, 1 or 3: channels x size."""
        _, height, width = self.pixels.shape
        share = min(height / size[0], width / size[1])
        rows, columns = (max(1, round(side * share)) for side in size)
        top, left = (height - rows) // 2, (width - columns) // 2
        part = self.pixels[None, :, top : top + rows, left : left + columns]
        part = F.interpolate(part, size=size, mode="bilinear", align_corners=False, antialias=True)[0].clamp(0, 1)
        return part if channels == 3 else (part * torch.tensor(_GREY)[:, None, None]).sum(0, keepdim=True)


def make_picture(image: str) -> Picture:
    """The picture that IMAGE names.

    Raises:
        ClickException: there is none, in one line that says what to do.
    """
    if image in PHOTOGRAPHS:
        for package in ("sklearn", "PIL"):
            need(package, "demo")
        from sklearn.datasets import load_sample_image

        return Picture(f"scikit-learn's photograph {image}", _pixels(load_sample_image(f"{image}.jpg")))
    if image.isdecimal():
        return _digit(int(image))
    path = Path(image)
    if not path.is_file():
        known = f"IMAGE is a file, a number for a digit, or {' or '.join(PHOTOGRAPHS)}"
        raise click.ClickException(f"{image} does not exist, or is not a file: {known}{close_to(image, PHOTOGRAPHS)}")
    need("PIL", "demo")
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with failing(f"{image} cannot be read"), warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                upright = ImageOps.exif_transpose(opened)
                if upright.mode.startswith(("I", "F")):  # wider than 8 bits, which convert would cut off
                    return Picture(path.name, _stretched(np.asarray(upright)))
                return Picture(path.name, _pixels(np.asarray(upright.convert("RGB"))))
    except click.ClickException as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            raise click.ClickException(f"{image} is not an image that pillow can read: give a .png or .jpg") from error
        raise


def _pixels(values: object) -> torch.Tensor:
    return torch.tensor(values).permute(2, 0, 1).float() / 255


def _stretched(values: object) -> torch.Tensor:
    """Grey values of any range, the least as 0 and the largest as 1."""
    grey = torch.tensor(values).double().nan_to_num(0, 0, 0)
    low, high = grey.aminmax()
    return ((grey - low) / (high - low).clamp(min=1e-30)).float().expand(3, -1, -1)


def _digit(number: int) -> Picture:
    need("sklearn", "demo")
    from ..demo import digits

    data = digits.load(8)
    if number >= len(data.test):
        raise click.ClickException(f"there is no digit {number}: expected 0 to {len(data.test) - 1}, or a file")
    pixels = (data.test[number] * digits.STD + digits.MEAN).clamp(0, 1)
    return Picture(f"digit {number} of the test set, a {int(data.test_labels[number])}", pixels.expand(3, -1, -1))


def normalised(net: nn.Module, fitted: torch.Tensor) -> torch.Tensor:
    """The image as the net takes it, 1 x C x H x W: by the mean and deviation that timm's net names, or else
    ImageNet's, or of grey images those of the digits.
    """
    from ..demo import digits, photos

    mean, std = (digits.MEAN,), (digits.STD,)
    if len(fitted) == 3:
        config = getattr(net, "pretrained_cfg", None)
        config = config if isinstance(config, dict) else {}
        mean, std = config.get("mean") or photos.MEAN, config.get("std") or photos.STD
    return ((fitted - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])[None]
