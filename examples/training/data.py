"""Images: a folder of them, or scikit-learn's digits; and the order in which each process sees them."""

from __future__ import annotations

import random
from pathlib import Path

import click
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ghost_ops.demo import digits

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which pretrained nets expect


class Unreadable(click.ClickException):
    """A picture that cannot be read; the message names it."""


def open_picture(path: Path, *, quick: bool = False):
    """The picture as Pillow's RGB. ``quick``: all of the file is decoded, a JPEG's pixels at an eighth of the size.

    Raises:
        Unreadable: there is no such file, it is no picture, or ends early.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            if quick:
                opened.draft("RGB", (1, 1))
            return opened.convert("RGB")
    except UnidentifiedImageError as error:
        why = "it is not a picture of a known kind" if path.stat().st_size else "the file is empty"
        raise Unreadable(f"{path}: {why}") from error
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # decoders raise errors of many classes: SyntaxError, ValueError, struct.error, ...
        raise Unreadable(f"{path}: {type(error).__name__}: {error}") from error


class Folder(Dataset):
    """``root/class/image``: RGB, side x side, normalised; classes in alphabetical order.

    Files and folders whose names begin with a dot, such as ``.ipynb_checkpoints``, are left out.

    For training each image is cropped (8 to 100 % of its area, 3:4 to 4:3) and mirrored at random, as is usual for
    ImageNet. The draw depends only on seed, epoch and image, not on the number of workers nor on where a run began.
    """

    epoch = 0

    def __init__(self, root: Path, side: int, *, augment: bool, seed: int = 0) -> None:
        if not root.is_dir():
            raise click.BadParameter(f"expected the folders train and val in {root.parent}, there is no {root.name}")
        self.side, self.augment, self.seed = side, augment, seed
        self.classes = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
        self.images = [(path, label) for label, name in enumerate(self.classes) for path in _images(root / name)]
        if not self.images:
            raise click.BadParameter(f"expected a folder of images for each class in {root}, found no image")
        empty = sorted(set(range(len(self.classes))) - {label for _, label in self.images})
        if empty:
            names = ", ".join(self.classes[label] for label in empty[:5])
            raise click.BadParameter(f"expected images of every class in {root}, there are none of: {names}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        path, label = self.images[index]
        image = open_picture(path)
        draw = random.Random(f"{self.seed} {self.epoch} {index}")
        box = self._random_box(draw, *image.size) if self.augment else self._centre_box(*image.size)
        image = image.resize((self.side, self.side), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
        if self.augment and draw.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        values = (np.asarray(image, np.float32) / 255 - MEAN) / DEVIATION
        return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1), label

    @staticmethod
    def _random_box(draw: random.Random, width: int, height: int) -> tuple[float, float, float, float]:
        for _ in range(10):
            area, ratio = width * height * draw.uniform(0.08, 1), np.exp(draw.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = (area * ratio) ** 0.5, (area / ratio) ** 0.5
            if w <= width and h <= height:
                left, top = draw.uniform(0, width - w), draw.uniform(0, height - h)
                return left, top, left + w, top + h
        return Folder._centre_box(width, height)

    @staticmethod
    def _centre_box(width: int, height: int) -> tuple[float, float, float, float]:
        edge = min(width, height) * 224 / 256
        left, top = (width - edge) / 2, (height - edge) / 2
        return left, top, left + edge, top + edge


def _images(folder: Path) -> list[Path]:
    """All files below a folder that are named as pictures, but hidden ones; also links that lead nowhere."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.is_dir()
    ]


def load(folder: Path | None, side: int | None, seed: int) -> tuple[Dataset, Dataset, int, int]:
    """Images for training and for validation, the number of classes, and that of channels."""
    if folder is None:
        found = digits.load(side or 16)
        return TensorDataset(found.train, found.train_labels), TensorDataset(found.test, found.test_labels), 10, 1
    train = Folder(folder / "train", side or 224, augment=True, seed=seed)
    val = Folder(folder / "val", side or 224, augment=False)
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes))
        raise click.BadParameter(f"expected the same classes in train and val, these differ: {', '.join(odd[:5])}")
    return train, val, len(train.classes), 3


def train_batches(count: int, size: int, accumulate: int, *, seed: int, epoch: int, rank: int, world: int) -> list:
    """One epoch's batches of indices for a process: as many for each, a multiple of ``accumulate``, none short."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch)).tolist()
    steps = count // (size * accumulate * world)
    own = order[rank : steps * size * accumulate * world : world]
    return [own[i : i + size] for i in range(0, len(own), size)]


def val_batches(count: int, size: int, *, rank: int, world: int) -> list[list[int]]:
    """Batches of positions: as many for each process, so that sharded nets run in step. Those from ``count`` on are
    padding, to be taken modulo ``count`` and not to be counted."""
    own = range(rank, -(-count // world) * world, world)
    return [list(own[i : i + size]) for i in range(0, len(own), size)]


def batches_of(dataset: Dataset, batches: list[list[int]], workers: int) -> DataLoader:
    """With a generator of its own: a loader takes a number from it when it starts, which PyTorch's must not miss."""
    return DataLoader(dataset, batch_sampler=batches, num_workers=workers, generator=torch.Generator())
