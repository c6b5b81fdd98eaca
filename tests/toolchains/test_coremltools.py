"""coremltools: Core ML models of traces and of exported programs. Without macOS they are made, and not run."""

import warnings

import pytest
import torch

from .nets import WAYS, image, made, need

coremltools = need("coremltools")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def convolutions(model):
    (program,) = (model.get_spec().mlProgram.functions,)
    (block,) = program["main"].block_specializations.values()
    return sum(operation.type == "conv" for operation in block.operations)


def convert(given, **options):
    return coremltools.convert(given, convert_to="mlprogram", skip_model_load=True, **options)


# Version 9 takes no plain net with a view by sizes beside numpy 2.4, and no exported one with a dropout.


@pytest.mark.parametrize("way", WAYS)
def test_traced(way):
    net, plain = made("parted", way)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = convert(torch.jit.trace(net, image()), inputs=[coremltools.TensorType(shape=image().shape)])
    assert convolutions(model) == sum(isinstance(m, torch.nn.Conv2d) for m in plain.modules())


@pytest.mark.parametrize("way", ["fused", "thawed and folded"])
def test_exported(way):
    net, plain = made("yolo", way)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = convert(torch.export.export(net, (image(),)).run_decompositions())
    assert convolutions(model) == sum(isinstance(m, torch.nn.Conv2d) for m in plain.modules())
