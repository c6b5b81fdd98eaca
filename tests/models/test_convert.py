import re

import pytest
import torch

from ghost_ops import models
from ghost_ops.models import MODELS, CheckpointError, convert_state_dict

from ..helpers import make_map, randomise, relative_difference
from .sources import FirstCodeNet


def logits(net, x):
    with torch.no_grad():
        return net.eval()(x)


@pytest.mark.parametrize(
    ("options", "model"),
    [
        ({}, "ghostnet_100"),
        ({"width": 0.5, "dropout": False}, "ghostnet_050"),
        ({"shortcut_relu": True}, "ghostnet_100_d_li14"),
    ],
)
def test_first_codes_give_the_same_logits(options, model):
    source = randomise(FirstCodeNet(**options))
    state = convert_state_dict(source.state_dict(), model)
    net = MODELS[model](num_classes=7)
    net.load_state_dict(state, strict=True)
    x = make_map((2, 3, 64, 64))
    assert relative_difference(logits(net, x), logits(source, x)) < 1e-5


def test_the_very_first_code_is_refused_with_its_keys():
    state = FirstCodeNet(0.5, shortcut_relu=True, all_depthwise=True).state_dict()
    for model in ("ghostnet_050", "ghostnet_100_d_li14"):
        with pytest.raises(CheckpointError, match=rf"of {model}: features.1.conv.1.0.weight is unexpected"):
            convert_state_dict(state, model)


def test_shortcuts_with_a_relu_are_not_taken_for_others():
    with pytest.raises(CheckpointError, match=r"a ReLU stands behind features.2.shortcut.* for ghostnet_100_d"):
        convert_state_dict(FirstCodeNet(shortcut_relu=True).state_dict(), "ghostnet_100")
    with pytest.raises(CheckpointError, match=r"no ReLU stands behind features.2.shortcut.* for ghostnet_050"):
        convert_state_dict(FirstCodeNet().state_dict(), "ghostnet_100_d_li14")


@pytest.mark.parametrize("model", ["ghostnet_100", "ghostnet_100_d_li14"])
def test_own_keys_stay(model):
    net = MODELS[model](num_classes=3, in_chans=1, device="meta")
    state = {**net.state_dict(), "total_ops": torch.zeros(1), "blocks.0.0.total_params": torch.zeros(1)}
    converted = convert_state_dict(state, model)
    assert list(converted) == list(net.state_dict())
    assert all(converted[name] is value for name, value in state.items() if "total" not in name)


def test_old_versions_of_pytorch_counted_no_batches():
    state = models.ghostnet_050().state_dict()
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    converted = convert_state_dict(old, "ghostnet_050")
    assert converted.keys() == state.keys() and converted["bn1.num_batches_tracked"] == 0


def test_without_a_classifier():
    state = models.ghostnet_050(num_classes=0, device="meta").state_dict()
    assert convert_state_dict(state, "ghostnet_050").keys() == state.keys()


def test_another_net_is_refused_with_the_first_keys_that_differ():
    state = models.ghostnet_100(device="meta").state_dict()
    with pytest.raises(CheckpointError) as error:
        convert_state_dict(state, "ghostnet_050")
    message = str(error.value)
    assert message.startswith("convert_state_dict: this is not a checkpoint of ghostnet_050: conv_stem.weight has")
    assert "(16, 3, 3, 3), expected (8, 3, 3, 3)" in message
    assert re.search(r"; and \d+ more$", message) and message.count(";") == 3 and "\n" not in message

    with pytest.raises(CheckpointError, match=r"0.weight is unexpected; conv_stem.weight is missing; bn1"):
        convert_state_dict({"0.weight": torch.zeros(3, 3)}, "ghostnet_050")


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"model: expected one of ghostnet_050, .*, got 'resnet18'"):
        convert_state_dict({}, "resnet18")
    with pytest.raises(TypeError, match="state_dict: expected a mapping of names to tensors, got list"):
        convert_state_dict([], "ghostnet_100")
    with pytest.raises(TypeError, match="state_dict: expected a mapping of names to tensors, got dict"):
        convert_state_dict({"epoch": 3}, "ghostnet_100")


def test_huaweis_third_version_has_other_names_for_its_branches():
    net = models.ghostnetv3_050(num_classes=2, device="meta")
    theirs = {
        name.replace(".bn1.", ".bn.") if "_rpr_" in name else name: value for name, value in net.state_dict().items()
    }
    assert "blocks.0.0.ghost1.primary_rpr_conv.0.bn.weight" in theirs and "blocks.9.0.bn1.weight" in theirs
    converted = convert_state_dict(theirs, "ghostnetv3_050")
    assert list(converted) == list(net.state_dict())
    del theirs["blocks.0.0.ghost1.primary_rpr_conv.0.bn.weight"]
    theirs["blocks.0.0.ghost1.primary_rpr_conv.7.bn.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"primary_rpr_conv.7.bn.weight is unexpected; .*0.bn1.weight"):
        convert_state_dict(theirs, "ghostnetv3_050")


@pytest.mark.parametrize("model", ["ghostnetv3_050", "repghostnet_050"])
def test_merged_nets_are_taken_too(model):
    net = MODELS[model](num_classes=2, device="meta")
    before = net.state_dict()
    net.reparameterize()
    after = net.state_dict()
    assert list(convert_state_dict(before, model)) == list(before)
    assert list(convert_state_dict(after, model)) == list(after)
