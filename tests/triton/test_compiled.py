"""Every kernel of the tile table, compiled ahead of time: no register spills, shared memory within the chip's limit."""

from __future__ import annotations

import re

import pytest
import torch

from ghost_ops.backends.triton import tiles
from tests.triton import aot, calls

ODD = ("sm_90",)  # where the odd shapes are compiled too


@pytest.mark.parametrize(
    ("architecture", "half"),
    [("sm_80", torch.float16), ("sm_89", torch.float16), ("sm_90", torch.bfloat16), ("sm_100", torch.bfloat16)],
)
def test_no_spills_and_shared_memory_within_the_limit(architecture, half, record_property):
    launches: dict[aot.Launch, str] = {}
    for name, call in calls.core(half) + (calls.odd(half) if architecture in ODD else []):
        for one in aot.record(architecture, call):
            launches.setdefault(one, name)
    assert len({one.kernel for one in launches}) >= 11
    bad, most = [], (0, 0)
    for one, name in launches.items():
        found = aot.compile_for(one, architecture)
        most = max(most[0], found.registers), max(most[1], found.shared)
        if found.spilled or found.shared > aot.SHARED[architecture]:
            bad.append(f"{name}: {one}: {found.spilled} bytes spilled, {found.shared} bytes shared")
    record_property("registers", most[0])
    record_property("shared", most[1])
    print(f"{architecture}: {len(launches)} kernels, at most {most[0]} registers, {most[1]} bytes shared")
    assert not bad, "\n".join(bad)


def test_every_entry_of_the_table_is_compiled():
    """The calls reach all classes of shapes and kernels that the table has."""
    seen, lookup = set(), tiles.lookup
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "lookup", lambda *args: seen.add(args[:2]) or lookup(*args))
        for _, call in calls.core(torch.float16):
            aot.record("sm_90", call)
    table = {tuple(key.split("/", 1)) for rows in tiles.table().values() for key in rows}
    assert table == seen


def test_stores_come_before_the_barrier_and_loads_after():
    """What the single pass relies on: y1 is written, then the barrier, then it is read back past the first cache."""
    (one,) = aot.record("sm_90", lambda: calls.inference(64, 64, 56, torch.float16))
    ptx = aot.compile_for(one, "sm_90").ptx
    lines = ptx.splitlines()
    stores = [i for i, line in enumerate(lines) if "st.global" in line]
    backs = [i for i, line in enumerate(lines) if re.search(r"ld\.global\.cg|L1::no_allocate", line)]
    barriers = [i for i, line in enumerate(lines) if "bar.sync" in line or "barrier.sync" in line]
    assert stores and backs and barriers
    first = min(backs)
    assert any(min(stores) < barrier < first for barrier in barriers)
    after_last = max(i for i in stores if i < first)
    assert any(after_last < barrier < first for barrier in barriers)


def test_wide_offsets_compile():
    """A map of 2**31 elements and more an image, and one whose images are further apart: meta tensors, no memory."""

    def run(shape):
        x = torch.empty(shape, dtype=torch.float16, device="meta").to(memory_format=torch.channels_last)
        w, cheap = (torch.empty(s, dtype=torch.float16, device="meta") for s in ((16, shape[1], 1, 1), (16, 1, 3, 3)))
        calls.ghost_module.ghost_module(x, w, None, cheap, *[None] * 5, 32, 1, 1, 0.0, 0.0, False)

    (near,) = aot.record("sm_90", lambda: run((2, 16, 512, 512)))
    (far,) = aot.record("sm_90", lambda: run((2, 64, 6000, 6000)))
    assert dict(near.constants)["WIDE"] is False and dict(far.constants)["WIDE"] is True
    assert aot.compile_for(far, "sm_90").spilled == 0


def test_tf32_follows_pytorch():
    def one():
        calls.inference(64, 64, 14, torch.float32)

    allowed = torch.backends.cudnn.allow_tf32
    try:
        for allow, expected in ((True, "tf32"), (False, "ieee")):
            torch.backends.cudnn.allow_tf32 = allow
            (found,) = aot.record("sm_90", one)
            assert dict(found.constants)["PRECISION"] == expected
        assert aot.compile_for(found, "sm_90").spilled == 0
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
