"""coremltools: Core ML models of traces and of exported programs. Without macOS they are made, and not run."""

import warnings

import pytest
import torch

import ghost_ops

from .nets import every_net, every_way, image, made, need

coremltools = need("coremltools")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def convolutions(model):
    (program,) = (model.get_spec().mlProgram.functions,)
    (block,) = program["main"].block_specializations.values()
    return sum(operation.type == "conv" for operation in block.operations)


@pytest.mark.parametrize("how", ["traced", "exported"])
@every_way
@every_net
def test_convert(name, way, how):
    net, plain = made(name, way)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "traced":
            given = torch.jit.trace(net, image())
            options = {"inputs": [coremltools.TensorType(shape=image().shape)]}
        else:
            table = {**torch.export.default_decompositions(), **ghost_ops.decompositions()}
            given, options = torch.export.export(net, (image(),)).run_decompositions(table), {}
        model = coremltools.convert(given, convert_to="mlprogram", skip_model_load=True, **options)
    assert convolutions(model) == sum(isinstance(m, torch.nn.Conv2d) for m in plain.modules())
