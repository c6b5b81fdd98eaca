"""Every kernel of the tile table, compiled ahead of time: no register spills, shared memory within the chip's limit."""

from __future__ import annotations

import os
import re

import pytest
import torch

from ghost_ops.backends.triton import tiles
from tests.triton import aot, calls

ODD = ("sm_90",)  # where the odd shapes are compiled too
BY_ITSELF = ("sm_80", "sm_89", "sm_100")  # `make compiled` compiles for these too
EVERY = os.environ.get("GHOST_OPS_EVERY_ARCHITECTURE") == "1"


@pytest.mark.parametrize(
    ("architecture", "half"),
    [("sm_80", torch.float16), ("sm_89", torch.float16), ("sm_90", torch.bfloat16), ("sm_100", torch.bfloat16)],
)
def test_no_spills_and_shared_memory_within_the_limit(architecture, half, record_property):
    if architecture in BY_ITSELF and not EVERY:
        pytest.skip(f"make compiled compiles for {architecture} too")
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


@pytest.mark.parametrize(("c", "m", "side"), [(16, 24, 112), (24, 36, 56), (40, 60, 28), (80, 92, 14), (960, 80, 7)])
def test_maps_are_read_and_written_several_channels_at_once(c, m, side):
    """No access to a map of a net's layer is of single elements: ``assume_multiple`` says what divides them."""
    calls_ = [lambda: calls.inference(c, m, side, torch.float16), lambda: calls.training(c, m, side, torch.float16)]
    launches = {one for call in calls_ for one in aot.record("sm_90", call)}
    backward = {"cheap_epilogue_bwd_kernel", "cheap_conv_bwd_kernel"}
    backward |= {"product_bwd_kernel"} if m * c < 4000 else {"input_bwd_kernel", "primary_weight_bwd_kernel"}
    kernels = {"product_kernel", "cheap_kernel", *backward}
    assert kernels <= {one.kernel.__name__ for one in launches}
    for one in launches:
        if one.kernel.__name__ in kernels:
            ptx = aot.compile_for(one, "sm_90").ptx
            assert not re.search(r"st\.global\.b16", ptx), str(one)
            parameters = {"weight", "cheap_weight"} | {
                n for n, k in one.signature if n.startswith(("primary_", "cheap_"))
            }
            if all(kind == "*fp32" for name, kind in one.signature if name in parameters and kind[0] == "*"):
                assert not re.search(r"ld\.global[.\w:]*\.b16", ptx), str(one)


@pytest.mark.parametrize(("m", "side", "d"), [(48, 56, 3), (672, 7, 5)])
def test_layers_read_and_write_several_channels_at_once(m, side, d):
    kernels = {"depthwise_kernel", "depthwise_bwd_kernel", "normalise_kernel", "norm_bwd_kernel"}
    launches = aot.record("sm_90", lambda: calls.layers(side, torch.float16, m=m, d=d))
    assert kernels <= {one.kernel.__name__ for one in launches}
    for one in launches:
        if one.kernel.__name__ in kernels:
            ptx = aot.compile_for(one, "sm_90").ptx
            assert not re.search(r"(st\.global|ld\.global)[.\w:]*\.b16", ptx), str(one)


def test_the_last_program_reads_rows_after_all_are_stored():
    """Stores, barrier, release; acquire, barrier, loads past the L1 cache: in this order, and no load before."""
    some = (lambda: calls.training(24, 36, 56, torch.float16), lambda: calls.layers(56, torch.float16, m=48))
    launches = [
        one
        for one in (one for call in some for one in aot.record("sm_90", call))
        if dict(one.signature).get("join_counters", "constexpr") != "constexpr"
        and not dict(one.constants).get("COUNTERS")
    ]
    kernels = {"product_kernel", "depthwise_kernel", "convolution_kernel", "norm_bwd_kernel", "cheap_kernel"}
    kernels |= {"cheap_epilogue_bwd_kernel", "cheap_conv_bwd_kernel"}
    assert kernels <= {one.kernel.__name__ for one in launches}
    pattern = re.compile(r"(?<![\w.])(st\.global|bar\.sync|atom\.global|ld\.global)([\w.:]*)")
    for one in launches:
        found = [m.groups() for m in map(pattern.search, aot.compile_for(one, "sm_90").ptx.splitlines()) if m]
        atomics = [i for i, (what, _) in enumerate(found) if what == "atom.global"]
        assert [found[i][1] for i in atomics] == [".gpu.acq_rel.add.u32"] * 2, str(one)
        before = 0
        for i, end in zip(atomics, [atomics[1], len(found)]):
            names = [what for what, _ in found[before:i]]
            last_store = len(names) - 1 - names[::-1].index("st.global")
            assert "bar.sync" in names[last_store:], f"{one}: no barrier between stores and release"
            after = [what for what, _ in found[i + 1 : end]]
            assert after.index("bar.sync") < after.index("ld.global"), f"{one}: no barrier between acquire and loads"
            before = i
        past_l1 = [".cg" in how for what, how in found if what == "ld.global"]
        first = sum(what == "ld.global" for what, _ in found[: atomics[0]])
        between = sum(what == "ld.global" for what, _ in found[: atomics[1]])
        least = 2 if one.kernel.__name__.endswith("_bwd_kernel") else 3  # the third sum is PReLU's
        assert not any(past_l1[:first]) and all(past_l1[first:between]) and sum(past_l1[between:]) >= least, str(one)


def test_wide_offsets_compile():
    """A map of 2**31 elements and more an image, and one whose images are further apart: meta tensors, no memory."""

    def run(shape):
        x = torch.empty(shape, dtype=torch.float16, device="meta").to(memory_format=torch.channels_last)
        for m in (32, 31):  # in one launch, in two
            shapes = (m, shape[1], 1, 1), (m, 1, 3, 3)
            w, cheap = (torch.empty(s, dtype=torch.float16, device="meta") for s in shapes)
            calls.ghost_module.ghost_module(x, w, None, cheap, *[None] * 5, 2 * m, 1, 1, 0.0, 0.0, False)

    near, far = (
        [one for one in aot.record("sm_90", lambda shape=shape: run(shape)) if "WIDE" in dict(one.constants)]
        for shape in ((2, 64, 512, 512), (2, 64, 6000, 6000))
    )
    assert len(near) == len(far) == 3
    assert not any(dict(one.constants)["WIDE"] for one in near) and all(dict(one.constants)["WIDE"] for one in far)
    assert not any(aot.compile_for(one, "sm_90").spilled for one in far)


def test_tf32_follows_pytorch():
    def one():
        calls.inference(64, 64, 14, torch.float32)

    allowed = torch.backends.cudnn.allow_tf32
    try:
        for allow, expected in ((True, "tf32"), (False, "ieee")):
            torch.backends.cudnn.allow_tf32 = allow
            found = next(f for f in aot.record("sm_90", one) if "PRECISION" in dict(f.constants))
            assert dict(found.constants)["PRECISION"] == expected
        assert aot.compile_for(found, "sm_90").spilled == 0
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
