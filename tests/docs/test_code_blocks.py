"""The Python code of the documentation runs, page by page, in the order in which it is written.

The nets of ``ghost_ops.models.ghostnet`` have two stages here, and stand for timm's too, so that a page takes seconds.
docs/blocks.md is run by tests/fused/test_register_block.py.
"""

import re
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import ghost_ops
from ghost_ops.models import ghostnet

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = {"docs/blocks.md"}
PAGES = [
    page
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
    if BLOCK.search(path.read_text()) and (page := path.relative_to(ROOT).as_posix()) not in ELSEWHERE
]
STAGES = ghostnet.STAGES[0], ghostnet.STAGES[3]


def net(*_, **__) -> nn.Module:
    return ghost_ops.models.ghostnet_100().eval()


def images() -> torch.Tensor:
    return torch.randn(1, 3, 64, 64)


# What the pages that do not begin with a net of their own assume to be there.
GIVEN = {
    "docs/api.md": lambda: {
        "vgg16": nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
    },
    "docs/command-line.md": lambda: {"net": net(), "x": images()},
    "docs/recognition.md": lambda: {"net": net(), "example": images(), "self": net(), "images": images()},
    "docs/toolchains.md": lambda: {"net": net(), "x": images()},
    "docs/training.md": lambda: {"net": net(), "images": images()},
    "docs/ultralytics.md": lambda: {"yolo": Yolo()},
}
# Calls that the page makes and this machine or this suite cannot, and where they are made.
NOT_HERE = {
    ".cuda()": "a CUDA device",
    "aoti_compile_and_package": "a minute: tests/toolchains/test_aot_inductor.py compiles what the page shows",
}


class Yolo:
    """As much of ultralytics' YOLO as the page uses."""

    def __init__(self):
        self.model, self.callbacks = net(), {}

    def add_callback(self, event, function):
        self.callbacks[event] = function


def runs_here(code: str) -> bool:
    return not any(call in code and not (call == ".cuda()" and torch.cuda.is_available()) for call in NOT_HERE)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore:torch.export records a frozen net", "ignore::FutureWarning")
def test_the_code_of_a_page_runs(page, monkeypatch, tmp_path):
    monkeypatch.setattr(ghostnet, "STAGES", STAGES)
    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=net))
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("page")
    module.__dict__.update({"torch": torch, "ghost_ops": ghost_ops}, **GIVEN.get(page, dict)())
    for number, code in enumerate(BLOCK.findall((ROOT / page).read_text())):
        compiled = compile(textwrap.dedent(code), f"{page}, block {number + 1}", "exec")
        if runs_here(code):
            exec(compiled, module.__dict__)
