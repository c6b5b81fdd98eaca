"""ghost_ops, timm, OpenVINO and a compiled net in one process, imported and first used in every order.

``python -m tests.endurance.import_orders``. Each library brings threads and allocators of its own; what is loaded first
decides whose are used. Every order is a process of its own, whose results must be right.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

ROOT = Path(__file__).parents[2]
PARTS = {
    "ghost_ops": """
import ghost_ops
frozen = ghost_ops.freeze(net())
same("frozen", frozen(x))
same("fused", ghost_ops.fuse(net())(x))
""",
    "timm": """
import tests.conftest  # timm imports torchvision, whose operators need not load beside this torch
import timm
timm_net = timm.create_model("ghostnet_050", num_classes=3).eval()
assert timm_net(torch.randn(1, 3, 64, 64)).shape == (1, 3)
""",
    "openvino": """
import openvino
model = openvino.compile_model(openvino.convert_model(net(), example_input=x), "CPU")
same("openvino", torch.from_numpy(model(x.numpy())[0]), 1e-3)
""",
    "torch.compile": """
compiled = torch.compile(net())
same("compiled", compiled(x))
""",
}
FIRST = """
import sys, torch
torch.manual_seed(0)
torch.set_grad_enabled(False)
def net():
    torch.manual_seed(1)
    layers = [torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.BatchNorm2d(8), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Conv2d(8, 16, 1), torch.nn.ReLU()).eval()
x = torch.randn(2, 3, 32, 32)
expected = net().double()(x.double())
def same(what, out, bound=1e-5):
    off = float((out - expected).abs().max() / expected.abs().max())
    assert off <= bound, f"{what}: {off:.3g} off"
"""
BOTH = """
module = torch.compile(ghost_ops.FusedGhostModule(8, 20).eval())
y = torch.randn(1, 8, 9, 9)
out = module(y)
assert torch.allclose(out, ghost_ops.revert(module._orig_mod)(y), rtol=1e-4, atol=1e-5)
"""


def available() -> list[str]:
    """The parts whose libraries are installed."""
    return [name for name in PARTS if name == "torch.compile" or importlib.util.find_spec(name)]


def run_in_order(order: Sequence[str], first: str = FIRST) -> str | None:
    """Imports and uses the parts in this order, in a new process. Returns what went wrong."""
    code = first + "".join(PARTS[name] for name in order)
    if {"ghost_ops", "torch.compile"} <= set(order):
        code += BOTH
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=600)  # fmt: skip
    return None if done.returncode == 0 else f"{' '.join(order)}: ended with {done.returncode}: {done.stderr[-1500:]}"


@click.command(help=__doc__.splitlines()[0])
def main() -> None:
    if missing := PARTS.keys() - set(available()):
        raise SystemExit(f"not installed: {', '.join(sorted(missing))}")
    failed = 0
    for order in itertools.permutations(PARTS):
        start = time.monotonic()
        wrong = run_in_order(order)
        failed += bool(wrong)
        click.echo(wrong or f"{', '.join(order)}: right, {time.monotonic() - start:.0f} s")
    click.echo(f"{failed} orders failed")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
