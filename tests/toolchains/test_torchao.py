"""torchao: ``quantize_`` and pt2e see every convolution and linear layer of a fused net; a frozen one says what to
call."""

import copy
import warnings

import pytest
import torch

import ghost_ops

from .nets import assert_same, every_net, image, made, make, need

ao = need("torchao.quantization")
graphs = need("torchao.quantization.pt2e.quantize_pt2e")
xnnpack = need("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def pt2e(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = xnnpack.get_symmetric_quantization_config()
        graph = torch.export.export(net, (image(),)).module()
        prepared = graphs.prepare_pt2e(graph, xnnpack.XNNPACKQuantizer().set_global(config))
        for i in range(3):
            prepared(image(i))
        return graphs.convert_pt2e(prepared)


def dequantised(graph):
    """How many convolutions and linear layers read an int8 weight."""
    count = 0
    for node in graph.graph.nodes:
        if node.op == "call_function" and ("conv" in str(node.target) or "linear" in str(node.target)):
            count += "dequantize" in str(node.args[1].target)
    return count


@pytest.mark.parametrize("way", ["fused", "thawed and folded"])
@every_net
def test_pt2e(name, way):
    net, plain = made(name, way)
    found, wanted = pt2e(net), pt2e(copy.deepcopy(plain))
    assert dequantised(found) == dequantised(wanted) > 0
    if way == "fused":
        assert_same(found(image(1)), wanted(image(1)))


def test_pt2e_of_a_frozen_net_is_told_what_to_call():
    net = ghost_ops.freeze(make("one program"))
    with pytest.warns(UserWarning, match=r"a quantiser leaves them in floating point: give these ghost_ops\.thaw"):
        torch.export.export(net, (image(),))


@every_net
def test_quantize(name):
    net, plain = made(name, "fused")
    ao.quantize_(net, ao.Int8WeightOnlyConfig()), ao.quantize_(plain, ao.Int8WeightOnlyConfig())
    kinds = lambda m: {path: type(p) for path, p in m.named_parameters()}
    assert kinds(net) == kinds(plain)
    assert_same(net(image()), plain(image()))


def test_quantize_of_a_frozen_net():
    net = ghost_ops.freeze(make("one program"))
    ao.quantize_(net, ao.Int8WeightOnlyConfig())
    with pytest.raises(RuntimeError, match=r"'weight' of a Linear was replaced.*ghost_ops\.thaw\(net\)"):
        net(image())
