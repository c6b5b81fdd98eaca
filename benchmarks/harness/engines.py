"""Other engines, each optional: ONNX Runtime, OpenVINO, ncnn, ExecuTorch, with the threads asked for."""

from __future__ import annotations

import operator
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from .baselines import Baseline, Built, fold, register
from .machine import Unavailable, need
from .quiet import quiet


def _onnxruntime(module: nn.Module, x: torch.Tensor, threads: int) -> Built:
    """Binds input and output ahead of time. Its threads stop spinning when a run ends, which helps other engines."""
    for package in ("onnxruntime", "onnx", "onnxscript"):
        need(package)
    import onnxruntime as ort

    x = x.contiguous()
    with tempfile.TemporaryDirectory() as folder, quiet():
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

    def call(held: object = held) -> object:  # it must outlive the binding
        session.run_with_iobinding(binding)
        return out

    return Built(call, lambda out: torch.from_numpy(out.numpy().copy()))


def _openvino(channels_last: bool, precision: str = "f32") -> Callable[..., Built]:
    def build(module: nn.Module, x: torch.Tensor, threads: int) -> Built:
        """Converts by itself. By default it computes in bfloat16 where the CPU can, so the precision is forced."""
        need("openvino")
        import openvino as ov

        core = ov.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise Unavailable("OpenVINO has no bfloat16 on this processor")
        x = x.contiguous()
        with torch.no_grad():
            shown = module(x)  # the whole of it: what a net remembers of a shape must not change while it is traced
        is_map = isinstance(shown, torch.Tensor) and shown.dim() == 4
        with quiet():
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
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        values = (x.permute(0, 2, 3, 1) if channels_last else x).contiguous().clone().numpy()
        request.set_input_tensor(ov.Tensor(values, shared_memory=True))

        def call(values: object = values) -> object:  # shared with the request
            request.infer()
            return request

        def result(request: object) -> list[torch.Tensor] | torch.Tensor:
            maps = [torch.from_numpy(tensor.data.copy()) for tensor in request.output_tensors]
            if len(maps) > 1:
                return maps
            return maps[0].permute(0, 3, 1, 2) if channels_last and is_map else maps[0]

        read = torch.from_numpy(values)
        return Built(call, result, input=read.permute(0, 3, 1, 2) if channels_last else read)

    return build


def _ncnn(module: nn.Module, x: torch.Tensor, threads: int) -> Built:
    """ncnn has no batches: its converter gets one image, and the images run one after another."""
    for package in ("ncnn", "pnnx"):
        need(package)
    import ncnn
    import pnnx

    net = ncnn.Net()
    net.opt.num_threads = threads
    for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage", "vulkan_compute"):
        if hasattr(net.opt, f"use_{name}"):
            setattr(net.opt, f"use_{name}", False)
    image = x[:1].contiguous()
    with tempfile.TemporaryDirectory() as folder, quiet():
        torch.jit.trace(module, image).save(f"{folder}/net.pt")
        shape = "inputshape=[" + ",".join(map(str, image.shape)) + "]f32"
        command = [pnnx.EXEC_PATH, "net.pt", shape, "fp16=0", "ncnnparam=net.param", "ncnnbin=net.bin"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode or net.load_param(f"{folder}/net.param") or net.load_model(f"{folder}/net.bin"):
            raise RuntimeError(f"pnnx wrote nothing that ncnn loads: {done.stderr.strip()[-200:]}")
    arrays = [image.contiguous().numpy() for image in x]
    images = [ncnn.Mat(array) for array in arrays]

    def call(arrays: object = arrays) -> list:  # the images are views of their memory
        out = []
        for image in images:
            extractor = net.create_extractor()
            extractor.input("in0", image)
            out.append(extractor.extract("out0")[1])
        return out

    return Built(call, lambda out: torch.stack([torch.from_numpy(mat.numpy().copy()) for mat in out]))


def _executorch(module: nn.Module, x: torch.Tensor, threads: int) -> Built:
    """Runs the folded net through XNNPACK as one delegate, NHWC in and out; its output is kept."""
    need("executorch")
    graph = for_one_delegate(fold(module), x)
    with quiet():
        try:
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
            from executorch.extension.pybindings import portable_lib
        except Exception as error:  # made for another torch, or installed without what it needs
            raise Unavailable(f"executorch does not load: {type(error).__name__}: {error}") from error
        lowered = to_edge_transform_and_lower(torch.export.export(graph, (x,)), partitioner=[XnnpackPartitioner()])
        buffer = lowered.to_executorch().buffer
    delegates = [node for node in lowered.exported_program().graph.nodes if "call_delegate" in str(node.target)]
    if portable_lib._threadpool_get_thread_count() != threads:  # before a net is loaded, which would keep the old pool
        portable_lib._unsafe_reset_threadpool(threads)
    loaded = portable_lib._load_for_executorch_from_buffer(buffer)

    def check() -> None:
        if len(delegates) != 1:
            raise RuntimeError(f"ExecuTorch made {len(delegates)} delegates of one net")

    def call(buffer: object = buffer) -> torch.Tensor:  # the net's weights are views of its memory
        return loaded.forward((x,), clone_outputs=False)[0]

    return Built(call, lambda out: out.clone(), check)


def for_one_delegate(graph: fx.GraphModule, x: torch.Tensor) -> fx.GraphModule:
    """The same net without what ends a delegate: slices that keep everything, pooling that depends on strides."""
    with torch.no_grad():
        ShapeProp(graph).propagate(x)
    children = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if source is None:
            continue
        shape, before = (n.meta["tensor_meta"].shape if "tensor_meta" in n.meta else None for n in (node, source))
        module = children[node.target] if node.op == "call_module" else None
        pools = isinstance(module, nn.AdaptiveAvgPool2d) or node.target is F.adaptive_avg_pool2d
        if node.target is operator.getitem and shape == before:
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)
        elif pools and shape[2:] == (1, 1):
            with graph.graph.inserting_before(node):
                mean = graph.graph.call_method("mean", (source, (2, 3)), {"keepdim": True})
            node.replace_all_uses_with(mean)
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


ENGINES = (
    Baseline("onnxruntime", "ONNX Runtime", "engine", _onnxruntime),
    Baseline("openvino", "OpenVINO", "engine", _openvino(channels_last=False)),
    Baseline("openvino_nhwc", "OpenVINO, NHWC in and out", "engine", _openvino(channels_last=True)),
    Baseline("ncnn", "ncnn", "engine", _ncnn),
    Baseline("executorch", "ExecuTorch, XNNPACK", "engine", _executorch),
)
BFLOAT16 = Baseline("openvino_bfloat16", "OpenVINO, bfloat16", "engine", _openvino(True, "bf16"), "bfloat16")
register(*ENGINES, BFLOAT16)
