import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ghost_ops import models
from ghost_ops.bench.cases import ModuleCase, NetCase, draw_images, module_cases, net_cases, randomise
from ghost_ops.bench.frozen import frozen_cases


def test_cases_are_the_32_ghost_modules_of_timms_net():
    timm = pytest.importorskip("timm")
    net, seen = timm.create_model("ghostnet_100").eval(), []

    def note(module, args, out):
        relu = any(isinstance(m, nn.ReLU) for m in module.primary_conv.modules())
        kernel = module.cheap_operation[0].kernel_size[0]
        seen.append((args[0].shape[1], out.shape[1], out.shape[2], kernel, relu))

    for module in net.modules():
        if type(module).__name__ == "GhostModule":
            module.register_forward_hook(note)
    with torch.no_grad():
        net(torch.zeros(1, 3, 224, 224))
    ours = [(c.inp, c.out, c.side, c.kernel, c.relu) for c in module_cases() for _ in range(c.count)]
    assert len(ours) == 32 and sorted(ours) == sorted(seen)
    assert len({c.name for c in module_cases()}) == len(module_cases()) < 32


@pytest.mark.parametrize("case", [ModuleCase(5, 12, 6), ModuleCase(16, 48, 9, kernel=5, relu=False)])
@pytest.mark.parametrize("batch", [1, 3])
def test_flops_and_bytes_are_those_of_the_module(case, batch):
    module, x = case.build(), case.input(batch)
    with FlopCounterMode(display=False) as counter:
        out = module(x)
    assert case.flops(batch) == counter.get_total_flops()
    parameters = sum(m.weight.numel() + m.out_channels for m in module.modules() if isinstance(m, nn.Conv2d))
    assert case.bytes(batch) == 4 * (x.numel() + out.numel() + parameters)


def test_channels_that_are_sliced_off_cost_nothing():
    assert ModuleCase(4, 7, 5).flops(1) == 2 * 25 * (4 * 4 + 9 * 3)


def test_net_flops_are_two_for_each_multiply_add():
    assert 140e6 < NetCase("ghostnet_100").flops(1) / 2 < 143e6
    assert NetCase("ghostnet_100").flops(3) == 3 * NetCase("ghostnet_100").flops(1)
    parameters = sum(p.numel() for p in models.ghostnet_100(device="meta").parameters())
    assert net_cases()[0].bytes(2) == 4 * (parameters + 2 * (3 * 224 * 224 + 1000))


def test_drawn_modules_depend_on_their_input_and_statistics():
    module = ModuleCase(8, 16, 5).build()
    norm = module.primary_conv[1]
    assert not torch.allclose(norm.weight, torch.ones(8)) and norm.running_mean.abs().max() > 0.05
    net = randomise(models.ghostnet_050(num_classes=10)).eval()
    with torch.no_grad():
        logits = net(torch.randn(2, 3, 64, 64))
    assert logits.isfinite().all() and (logits[0] - logits[1]).abs().max() > 1e-2 * logits.abs().max()
    assert math.isfinite(float(logits.sum()))


def test_frozen_cases():
    names = [case.name for case in frozen_cases()]
    assert names[:3] == ["ghostnet_100", "ghostnet_050", "ghostnet_130"]
    assert names[3:] == ["ghostnet_100@160", "ghostnet_100@320", "mobilenetv3_large_100", "mobilenetv2_100", "resnet18"]
    assert {case.kind for case in frozen_cases("bfloat16")} == {"frozen_bfloat16"}


def test_generated_images_are_the_same_each_time_and_differ():
    images = draw_images(4, 32, seed=1)
    assert torch.equal(images, draw_images(4, 32, seed=1)) and not torch.equal(images, draw_images(4, 32, seed=2))
    assert images.shape == (4, 3, 32, 32) and images.std((1, 2, 3)).unique().numel() == 4
