"""NNCF: fused nets are quantised as plain ones are; a frozen net says what to call."""

import copy
import os
import warnings

import pytest

import ghost_ops

from .nets import assert_same, every_net, image, made, make, need

os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "0")  # it compiles one, for as long as that takes
nncf = need("nncf")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def quantise(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nncf.quantize(net, nncf.Dataset([image(i) for i in range(4)]), subset_size=4)


def quantisers(net):
    return sum("Quantizer" in type(m).__name__ for m in net.modules())


@pytest.mark.parametrize("way", ["fused", "thawed and folded"])
@every_net
def test_quantised_as_the_plain_net(name, way):
    net, plain = made(name, way)
    found, wanted = quantise(net), quantise(copy.deepcopy(plain))
    assert quantisers(found) >= quantisers(wanted) > 0
    if way == "fused":
        assert quantisers(found) == quantisers(wanted)
        assert_same(found(image(1)), wanted(image(1)))


def test_frozen():
    net = ghost_ops.freeze(make("one program"))
    with pytest.raises((ValueError, RuntimeError), match=r"ghost_ops\.thaw\(net\)"):
        quantise(net)
