"""OpenVINO's converter takes fused and frozen nets, as modules and exported."""

import warnings

import pytest
import torch

import ghost_ops

from .nets import assert_same, few_pairs, image, made, need

openvino = need("openvino")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def run(model, x):
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(compiled([x.numpy()])[0])


@few_pairs
def test_modules(name, way):
    net, plain = made(name, way)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(net, example_input=image())
    for x in (image(1), image(2, batch=1)):
        assert_same(run(model, x), plain(x))


@few_pairs
def test_exported_programs(name, way):
    net, plain = made(name, way)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(net, (image(),))
        if way == "frozen":
            exported = exported.run_decompositions(ghost_ops.decompositions())
        model = openvino.convert_model(exported)
    assert_same(run(model, image(1)), plain(image(1)))
