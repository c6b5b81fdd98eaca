"""Other engines as peers, each optional: ONNX Runtime, OpenVINO and ncnn, in float32, with the threads asked for."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from . import ncnn_format
from .machine import Unavailable, need
from .peers import PYTORCH, Built, Peer, fold


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' chatter, which would run through the progress bars."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _onnxruntime(module: nn.Module, x: torch.Tensor, threads: int) -> Built:
    """Input and output bound ahead of time; its threads stop spinning when a run ends, for the sake of the others."""
    for package in ("onnxruntime", "onnx", "onnxscript"):
        need(package)
    import onnxruntime as ort

    x = x.contiguous()
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = str(Path(folder) / "net.onnx")
        torch.onnx.export(module, (x,), path, dynamo=True, external_data=False, verbose=False)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    held = ort.OrtValue.ortvalue_from_numpy(x.numpy())
    binding.bind_ortvalue_input(session.get_inputs()[0].name, held)
    with torch.no_grad():
        shape = module(x).shape
    out = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), "float32")
    binding.bind_ortvalue_output(session.get_outputs()[0].name, out)

    def call(held: object = held) -> object:  # which must outlive the binding
        session.run_with_iobinding(binding)
        return out

    return Built(call, lambda out: torch.from_numpy(out.numpy().copy()))


def _openvino(channels_last: bool) -> Callable[..., Built]:
    def build(module: nn.Module, x: torch.Tensor, threads: int) -> Built:
        """Its own conversion; by default it would compute in bfloat16 where the CPU can, so float32 is forced."""
        need("openvino")
        import openvino as ov

        x, is_map = x.contiguous(), isinstance(module(x[:1]), torch.Tensor) and module(x[:1]).dim() == 4
        with _quiet():
            model = ov.convert_model(module, example_input=x, input=[list(x.shape)])
        if channels_last:
            steps = ov.preprocess.PrePostProcessor(model)
            steps.input().tensor().set_layout(ov.Layout("NHWC"))
            steps.input().model().set_layout(ov.Layout("NCHW"))
            if is_map:
                steps.output().model().set_layout(ov.Layout("NCHW"))
                steps.output().tensor().set_layout(ov.Layout("NHWC"))
            model = steps.build()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
        values = (x.permute(0, 2, 3, 1) if channels_last else x).contiguous().numpy()
        request.set_input_tensor(ov.Tensor(values, shared_memory=True))

        def call(values: object = values) -> object:  # shared with the request
            request.infer()
            return request

        def result(request: object) -> torch.Tensor:
            out = torch.from_numpy(request.get_output_tensor().data.copy())
            return out.permute(0, 3, 1, 2) if channels_last and is_map else out

        return Built(call, result)

    return build


def _ncnn(module: nn.Module, x: torch.Tensor, threads: int) -> Built:
    """The folded graph in ncnn's own file format; it has no batches, so that the images run one after another."""
    need("ncnn")
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage", "vulkan_compute"):
        if hasattr(net.opt, f"use_{name}"):
            setattr(net.opt, f"use_{name}", False)
    try:
        parameters, weights = ncnn_format.write(fold(module))
    except ncnn_format.Unsupported as error:
        raise Unavailable(str(error)) from error
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "net.param", Path(folder) / "net.bin"
        files[0].write_text(parameters)
        files[1].write_bytes(weights)
        if net.load_param(str(files[0])) or net.load_model(str(files[1])):
            raise Unavailable("ncnn does not load the net that was written for it")
    arrays = [image.contiguous().numpy() for image in x]
    images = [ncnn.Mat(array) for array in arrays]

    def call(arrays: object = arrays) -> list:  # of whose memory the images are views
        out = []
        for image in images:
            extractor = net.create_extractor()
            extractor.input("in", image)
            out.append(extractor.extract("out")[1])
        return out

    return Built(call, lambda out: torch.stack([torch.from_numpy(mat.numpy().copy()) for mat in out]))


ENGINES = (
    Peer("onnxruntime", "ONNX Runtime", "engine", _onnxruntime),
    Peer("openvino", "OpenVINO", "engine", _openvino(channels_last=False)),
    Peer("openvino_nhwc", "OpenVINO, NHWC in and out", "engine", _openvino(channels_last=True)),
    Peer("ncnn", "ncnn", "engine", _ncnn),
)
PEERS = {peer.name: peer for peer in (*PYTORCH, *ENGINES)}
