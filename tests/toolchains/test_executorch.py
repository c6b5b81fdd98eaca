"""ExecuTorch, on XNNPACK: fused nets as they are, frozen ones thawed and folded."""

import warnings

import pytest
import torch

import ghost_ops

from .nets import assert_same, every_net, image, made, make, need

exir = need("executorch.exir")
portable_lib = need("executorch.extension.pybindings.portable_lib")
xnnpack = need("executorch.backends.xnnpack.partition.xnnpack_partitioner")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
TOLERANCE = 2e-5  # of the largest: XNNPACK's sums are in another order


def exported(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(net, (image(),))


def run(edge, x):
    buffer = edge.to_executorch().buffer  # of which the program's weights are views
    return portable_lib._load_for_executorch_from_buffer(buffer).forward([x])[0].clone()


@pytest.mark.parametrize("way", ["fused", "thawed and folded"])
@every_net
def test_xnnpack(name, way):
    net, plain = made(name, way)
    edge = exir.to_edge_transform_and_lower(exported(net), partitioner=[xnnpack.XnnpackPartitioner()])
    left = [str(node.target) for node in edge.exported_program().graph.nodes if "convolution" in str(node.target)]
    assert not left  # all are XNNPACK's
    assert_same(run(edge, image(1)), plain(image(1)), TOLERANCE)


def test_a_frozen_net_decomposed():
    """It runs, but its weights are taken out of the packed ones on every call."""
    net, plain = made("one program", "frozen")
    edge = exir.to_edge(exported(net).run_decompositions(ghost_ops.decompositions()))
    assert_same(run(edge, image(1)), plain(image(1)), TOLERANCE)


def test_a_frozen_net_as_it_is_is_refused():
    with pytest.raises(Exception, match="ghost_ops"):
        exir.to_edge(exported(ghost_ops.freeze(make("one program")))).to_executorch()
