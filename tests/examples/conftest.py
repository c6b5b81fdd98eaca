"""The example as a module, and a folder of images."""

import sys
from pathlib import Path

import pytest

from ghost_ops.backends import native

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Small nets; and bits that do not depend on the machine's number of cores."""


@pytest.fixture(scope="session")
def train():
    sys.path.insert(0, str(EXAMPLES))
    try:
        import train
    finally:
        sys.path.remove(str(EXAMPLES))
    return train


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Three classes of coloured noise: 13 images each for training, 3 for validation, of several shapes."""
    import numpy as np
    from PIL import Image

    root, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 13), ("val", 3)):
        for label, name in enumerate(("ant", "bee", "cat")):
            path = root / split / name
            path.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 120, (40 + i, 50 - i, 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(path / f"{i:02}.png")
            (path / "notes.txt").write_text("no image")
    return root


@pytest.fixture
def fused():
    """For tests that would compare plain PyTorch with itself."""
    if not native.available():
        pytest.skip(f"no compiled library: {native.reason()}")
