"""The modules of GhostNetV2, V3 and RepGhostNet: what they compute, how they are merged, what they refuse."""

import copy

import pytest
import torch
import torch.nn.functional as F

from ghost_ops.nn import GhostBottleneckV3, GhostModule, GhostModuleV2, GhostModuleV3, RepGhostModule

from ..helpers import assert_as_accurate, make_map, randomise

BRANCHED = {
    "v3": lambda: GhostModuleV3(6, 9),
    "v3, without activation": lambda: GhostModuleV3(5, 8, dw_size=5, relu=False),
    "v3, attention": lambda: GhostModuleV3(6, 10, attention=True),
    "v3, bottleneck": lambda: GhostBottleneckV3(6, 12, 6, 5, 2, se_ratio=0.25),
    "rep": lambda: RepGhostModule(6, 9),
    "rep, strided": lambda: RepGhostModule(6, 7, kernel_size=3, dw_size=5, stride=2, relu=False),
}


@pytest.mark.parametrize("height, width", [(2, 2), (7, 9), (8, 5)])
def test_attention_is_a_gate_of_half_the_size(height, width):
    module = randomise(GhostModuleV2(6, 9, ratio=3)).double().eval()
    x = make_map((2, 6, height, width), torch.float64)
    half = F.avg_pool2d(x, 2)
    gate = torch.sigmoid(module.short_conv(half))
    rows = torch.arange(height) * half.shape[2] // height
    columns = torch.arange(width) * half.shape[3] // width
    torch.testing.assert_close(module(x), GhostModule.forward(module, x) * gate[:, :, rows][:, :, :, columns])


@pytest.mark.parametrize("name", BRANCHED)
def test_merged_branches_compute_the_same(name):
    module = randomise(BRANCHED[name]()).eval()
    x = make_map((2, 6 if name != "v3, without activation" else 5, 9, 7))
    merged = copy.deepcopy(module)
    for part in list(merged.modules()):
        if hasattr(part, "reparameterize"):
            part.reparameterize()
            part.reparameterize()  # nothing is left to merge
    norms = sum(isinstance(m, torch.nn.BatchNorm2d) for m in merged.modules())
    assert norms < sum(isinstance(m, torch.nn.BatchNorm2d) for m in module.modules())
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(x.double())
        assert_as_accurate(merged(x), module(x), exact)
        # in float64 nothing is left but the rounding of the weights
        torch.testing.assert_close(merged.double()(x.double()), exact, rtol=1e-5, atol=1e-5)


def test_merging_keeps_device_dtype_and_mode():
    module = RepGhostModule(4, 6, device="meta", dtype=torch.bfloat16).eval()
    module.reparameterize()
    assert module.cheap_operation.weight.dtype is torch.bfloat16 and module.cheap_operation.weight.is_meta
    assert not any(m.training for m in module.modules())


@pytest.mark.parametrize("module", [RepGhostModule(4, 6), GhostModuleV3(4, 6)])
def test_merging_needs_running_statistics(module):
    state = copy.deepcopy(module).state_dict()
    norm = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)][-1]
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    with pytest.raises(ValueError, match="reparameterize: a BatchNorm of one of the branches has no running"):
        module.reparameterize()
    assert set(module.state_dict()) <= set(state) and "primary_conv.0.bias" not in module.state_dict()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GhostModuleV2(0, 4), "GhostModuleV2: inp: expected a positive int, got 0"),
        (lambda: GhostModuleV3(4, 0), "GhostModuleV3: oup: expected a positive int, got 0"),
        (lambda: GhostModuleV3(4, 4, dw_size=2), "GhostModuleV3: dw_size: expected an odd positive int, got 2"),
        (lambda: RepGhostModule(4, 4, stride=0), "RepGhostModule: stride: expected a positive int, got 0"),
        (
            lambda: GhostBottleneckV3(4, 4, 4, 2),
            "GhostBottleneckV3: dw_kernel_size: expected an odd",
        ),
        (lambda: GhostBottleneckV3(4, 4, 4, se_ratio=-1), "GhostBottleneckV3: se_ratio: expected None or a number"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
