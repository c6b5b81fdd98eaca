"""What whole nets, checkpoints and changes to nets refuse, and what is said, word by word."""

ROWS: dict[str, dict[str, str]] = {
    "nets": {
        "models.ghostnet_100(num_classes=-1)": "ValueError: GhostNet: num_classes: expected at least 0, got -1",
        'models.ghostnet_100(num_classes="10")': (
            "TypeError: GhostNet: num_classes: expected an int of at least 0, got '10'"
        ),
        "models.ghostnet_100(num_classes=2.5)": (
            "TypeError: GhostNet: num_classes: expected an int of at least 0, got 2.5"
        ),
        "models.ghostnet_100(in_chans=0)": "ValueError: GhostNet: in_chans: expected at least 1, got 0",
        "models.ghostnet_100(in_chans=None)": (
            "TypeError: GhostNet: in_chans: expected an int of at least 1, got None"
        ),
        "models.ghostnet_100(dropout=1.5)": "ValueError: GhostNet: dropout: expected a probability, got 1.5",
        'models.ghostnet_100(dropout="0.2")': "TypeError: GhostNet: dropout: expected a probability, got '0.2'",
        "models.GhostNet(width=0)": "ValueError: GhostNet: width: expected a positive number, got 0",
        "models.GhostNet(width=-1.0)": "ValueError: GhostNet: width: expected a positive number, got -1.0",
        'models.GhostNet(width="1.0")': "TypeError: GhostNet: width: expected a positive number, got '1.0'",
        "models.GhostNet(width=nan)": "ValueError: GhostNet: width: expected a positive number, got nan",
        "models.ghostnetv2_100(num_classes=-1)": "ValueError: GhostNetV2: num_classes: expected at least 0, got -1",
        "models.ghostnetv3_100(in_chans=-3)": "ValueError: GhostNetV3: in_chans: expected at least 1, got -3",
        "models.repghostnet_100(dropout=-0.1)": "ValueError: RepGhostNet: dropout: expected a probability, got -0.1",
        "models.ghost_resnet56(num_classes=-1)": (
            "ValueError: GhostResNet56: num_classes: expected at least 0, got -1"
        ),
        "models.ghost_vgg16(in_chans=0)": "ValueError: GhostVGG16: in_chans: expected at least 1, got 0",
        "models.ghostnet_100(num_classes=True)": (
            "TypeError: GhostNet: num_classes: expected an int of at least 0, got True"
        ),
        "models.GhostNet(width=inf)": "ValueError: GhostNet: width: expected a positive number, got inf",
        "models.ghostify(None)": "TypeError: ghostify: net: expected a torch.nn.Module, got NoneType",
        "models.ghostify(net, ratio=1)": "ValueError: ghostify: ratio: expected at least 2, got 1",
        "models.ghostify(net, ratio=2.0)": "TypeError: ghostify: ratio: expected a positive int, got 2.0",
        "models.ghostify(net, dw_size=2)": "ValueError: ghostify: dw_size: expected an odd positive int, got 2",
        'models.ghostify(net, keep="0")': "TypeError: ghostify: keep: expected paths of modules, got the string '0'",
        'models.ghostify(net, keep=["9"])': "ValueError: ghostify: keep: no module has the path '9'",
        "models.ghostify(nn.Sequential(nn.Linear(3, 4)))": (
            "ValueError: ghostify: net: nothing to replace: this Sequential has no dense convolution that is "
            "called, is not 1x1 (pointwise=False), is not a stem (keep_stem=True)"
        ),
        "models.ghostify(fused)": "ValueError: ghostify: net: 3 is fused or frozen: call ghost_ops.revert first",
        "models.ghostify(frozen)": "ValueError: ghostify: net: it is fused or frozen: call ghost_ops.thaw first",
        "models.ghostify(doubled)": (
            "ValueError: ghostify: net: nothing to replace: this Sequential has no dense convolution that is "
            "called, is not 1x1 (pointwise=False), is not a stem (keep_stem=True)"
        ),
        "models.ghostify(branching)": (
            "ValueError: ghostify: net: torch.fx cannot trace this Branching, so that what follows a "
            "convolution is not known: float() argument must be a string or a real number, not 'Proxy'"
        ),
        "models.compare_costs(None, net, image)": (
            "TypeError: compare_costs: before: expected a torch.nn.Module, got NoneType"
        ),
        'models.convert_state_dict(state, "ghostnet_10")': (
            "ValueError: convert_state_dict: model: expected one of ghostnet_050, ghostnet_100, ghostnet_130, "
            "ghostnet_100_d_li14, ghost_resnet50, ghost_resnet56, ghost_vgg16, ghostnetv2_100, ghostnetv2_130, "
            "ghostnetv2_160, ghostnetv3_050, ghostnetv3_100, ghostnetv3_130, ghostnetv3_160, repghostnet_050, "
            "repghostnet_058, repghostnet_080, repghostnet_100, repghostnet_111, repghostnet_130, "
            "repghostnet_150, repghostnet_200, got 'ghostnet_10'"
        ),
        'models.convert_state_dict([1], "ghostnet_050")': (
            "TypeError: convert_state_dict: state_dict: expected a mapping of names to tensors, got list"
        ),
        'models.convert_state_dict({"a": 1}, "ghostnet_050")': (
            "TypeError: convert_state_dict: state_dict: expected a mapping of names to tensors, got dict"
        ),
        'models.convert_state_dict(state, "ghostnet_130")': (
            "CheckpointError: convert_state_dict: this is not a checkpoint of ghostnet_130: conv_stem.weight "
            "has shape (8, 3, 3, 3), expected (20, 3, 3, 3); bn1.weight has shape (8,), expected (20,); "
            "bn1.bias has shape (8,), expected (20,); and 426 more"
        ),
        'models.load_checkpoint("none.pth")': "FileNotFoundError: [Errno 2] No such file or directory: 'none.pth'",
        'models.load_checkpoint("notes.txt")': (
            "CheckpointError: load_checkpoint: notes.txt: expected one of the suffixes .safetensors, .pth, "
            ".pt, .bin, .tar, got '.txt'"
        ),
        'models.load_checkpoint("empty.pth")': (
            "CheckpointError: load_checkpoint: empty.pth: the file is truncated, or not a .pth file (EOFError)"
        ),
        'models.load_checkpoint("noise.pth")': (
            "CheckpointError: load_checkpoint: noise.pth: the file is truncated, or not a .pth file of tensors "
            "only; other objects are not loaded, since that could run code: save a state_dict, "
            "torch.save(net.state_dict(), path)"
        ),
        'models.load_checkpoint("noise.safetensors")': (
            "CheckpointError: load_checkpoint: noise.safetensors: the file is truncated, or not a .safetensors "
            "file (Error while deserializing header: header too large)"
        ),
        'models.load_checkpoint("list.pth")': (
            "CheckpointError: load_checkpoint: list.pth: expected a state_dict, names and tensors, got a list"
        ),
        'models.load_checkpoint("object.pth")': (
            "CheckpointError: load_checkpoint: object.pth: the file is truncated, or not a .pth file of "
            "tensors only; other objects are not loaded, since that could run code: save a state_dict, "
            "torch.save(net.state_dict(), path)"
        ),
        'models.load_checkpoint("folder.pth")': "IsADirectoryError: [Errno 21] Is a directory: 'folder.pth'",
        'models.save_checkpoint(state, "state.pth")': (
            "CheckpointError: save_checkpoint: state.pth: the file exists, and is not overwritten"
        ),
        'models.save_checkpoint(state, "state.onnx")': (
            "CheckpointError: save_checkpoint: state.onnx: expected one of the suffixes .safetensors, .pth, "
            ".pt, .bin, .tar, got '.onnx'"
        ),
        'models.save_checkpoint(state, "nowhere/state.pth")': (
            "FileNotFoundError: [Errno 2] No such file or directory: 'nowhere/state.pth'"
        ),
        'models.save_checkpoint({"a": [1]}, "new.safetensors")': (
            "TypeError: save_checkpoint: state_dict: expected a mapping of names to tensors, got dict"
        ),
    },
    "surgery": {
        "ghost_ops.fuse(None)": "TypeError: fuse: net: expected a torch.nn.Module, got NoneType",
        'ghost_ops.fuse("net")': "TypeError: fuse: net: expected a torch.nn.Module, got str",
        "ghost_ops.fuse([net])": "TypeError: fuse: net: expected a torch.nn.Module, got list",
        "ghost_ops.fuse(GhostModule)": "TypeError: fuse: net: expected a torch.nn.Module, got type",
        'ghost_ops.fuse(blocks, memory="small")': (
            "ValueError: fuse: memory: expected one of balanced, low, fast, got 'small'"
        ),
        "ghost_ops.fuse(blocks, memory=True)": (
            "ValueError: fuse: memory: expected one of balanced, low, fast, got True"
        ),
        "ghost_ops.fuse(blocks, cuda_graph=1)": "TypeError: fuse: cuda_graph: expected True, False or None, got 1",
        'ghost_ops.fuse(blocks, cuda_graph="yes")': (
            "TypeError: fuse: cuda_graph: expected True, False or None, got 'yes'"
        ),
        "ghost_ops.revert(None)": "TypeError: revert: net: expected a torch.nn.Module, got NoneType",
        "ghost_ops.revert(state)": "TypeError: revert: net: expected a torch.nn.Module, got OrderedDict",
        "ghost_ops.freeze(None)": "TypeError: freeze: net: expected a torch.nn.Module, got NoneType",
        "ghost_ops.freeze(state)": "TypeError: freeze: net: expected a torch.nn.Module, got OrderedDict",
        "ghost_ops.freeze(training)": (
            "ValueError: freeze: net: expected a net in eval mode (net.eval()), got one in training mode"
        ),
        "ghost_ops.freeze(net, torch.float16)": (
            "ValueError: freeze: dtype: expected None, torch.float32 or torch.bfloat16, got torch.float16"
        ),
        "ghost_ops.freeze(net, torch.float64)": (
            "ValueError: freeze: dtype: expected None, torch.float32 or torch.bfloat16, got torch.float64"
        ),
        'ghost_ops.freeze(net, "bfloat16")': (
            "ValueError: freeze: dtype: expected None, torch.float32 or torch.bfloat16, got 'bfloat16'"
        ),
        "ghost_ops.freeze(net, cuda_graph=True)": (
            "ValueError: freeze: cuda_graph: expected a net on one CUDA device, got one on cpu"
        ),
        "ghost_ops.freeze(nn.Flatten().eval(), cuda_graph=True)": (
            "ValueError: freeze: cuda_graph: expected a net on one CUDA device, got one on no device"
        ),
        "ghost_ops.freeze(net, example=(image, image))": (
            "ValueError: freeze: example: expected arguments that this Sequential accepts, got (float32 2 x 3 "
            "x 33 x 31, float32 2 x 3 x 33 x 31): TypeError: Sequential.forward() takes 2 positional arguments "
            "but 3 were given"
        ),
        'ghost_ops.freeze(net, example={"y": image})': (
            "ValueError: freeze: example: expected arguments that this Sequential accepts, got (y=float32 2 x "
            "3 x 33 x 31): TypeError: Sequential.forward() got an unexpected keyword argument 'y'"
        ),
        "ghost_ops.freeze(frozen, torch.float16)": (
            "ValueError: freeze: dtype: expected None, torch.float32 or torch.bfloat16, got torch.float16"
        ),
        "ghost_ops.thaw(None)": "TypeError: thaw: net: expected a torch.nn.Module, got NoneType",
        "ghost_ops.thaw(net)": "ValueError: thaw: net: expected a frozen net, got one that keeps no plain modules",
        "ghost_ops.thaw(fused)": "ValueError: thaw: net: expected a frozen net, got one that keeps no plain modules",
        "frozen(image[:, :2])": (
            "ValueError: Sequential (frozen): input: expected a torch.float32 tensor N x 3 x H x W, got "
            "torch.float32 of shape (2, 2, 33, 31)"
        ),
        "frozen(image[0])": (
            "ValueError: Sequential (frozen): input: expected a torch.float32 tensor N x 3 x H x W, got "
            "torch.float32 of shape (3, 33, 31)"
        ),
        "frozen(image.double())": (
            "TypeError: Sequential (frozen): input: expected a torch.float32 tensor N x 3 x H x W, got "
            "torch.float64 of shape (2, 3, 33, 31)"
        ),
        "frozen(image.to(torch.uint8))": (
            "TypeError: Sequential (frozen): input: expected a torch.float32 tensor N x 3 x H x W, got "
            "torch.uint8 of shape (2, 3, 33, 31)"
        ),
        "frozen(None)": (
            "TypeError: Sequential (frozen): input: expected a torch.float32 tensor N x 3 x H x W, got NoneType"
        ),
        "frozen.train()": (
            "ValueError: Sequential (frozen): train: a frozen net stays in eval mode: train the net that it "
            "was made from, or ghost_ops.thaw(net)"
        ),
        "frozen.requires_grad_()": (
            "ValueError: Sequential (frozen): requires_grad_: a frozen net has no gradients: train the net "
            "that it was made from, or ghost_ops.thaw(net)"
        ),
        "frozen.load_state_dict(net.state_dict())": (
            "ValueError: Sequential (frozen): load_state_dict: expected the state of a frozen net, got that of "
            "a plain one: load it into the net that this one was made from and freeze again"
        ),
        'frozen.register_parameter("more", nn.Parameter(image))': (
            "ValueError: Sequential (frozen): more: a frozen net keeps its children and parameters: change the "
            "net that it was made from, or ghost_ops.thaw(net), and freeze again"
        ),
        'frozen.add_module("more", nn.ReLU())': (
            "ValueError: Sequential (frozen): more: a frozen net keeps its children and parameters: change the "
            "net that it was made from, or ghost_ops.thaw(net), and freeze again"
        ),
        "torch.func.functional_call(frozen, {n: p * 2 for n, p in frozen.named_parameters()}, (image,))": (
            "RuntimeError: Sequential (frozen): it was called with other parameters or buffers than those that "
            "were packed, as by torch.func.functional_call: call the net that it was made from, or "
            "ghost_ops.thaw(net)"
        ),
        "FrozenProgram(image, [1, 2, 3])": (
            "ValueError: program: steps: expected a precision of 0 (float32) or 1 (bfloat16), got 3"
        ),
        "FrozenProgram(None, encode([Load(0, 8, True), Store(0)], 1))": (
            "TypeError: FrozenProgram: packed: expected a tensor, got NoneType"
        ),
        "ghost_ops.register_block(None)": (
            "TypeError: register_block: block: expected a class that derives from LayerBlock, got None"
        ),
        "ghost_ops.register_block(GhostModule)": (
            "TypeError: register_block: block: expected a class that derives from LayerBlock, got <class "
            "'ghost_ops.nn.ghost_module.GhostModule'>"
        ),
        "ghost_ops.register_block(ghost_ops.LayerBlock)": (
            "ValueError: register_block: LayerBlock.kind: expected what explain calls such a module, got None"
        ),
        'ghost_ops.use_backend("Reference").__enter__()': (
            "ValueError: ghost_ops.use_backend: name: expected 'cuda', 'triton', 'reference' or None, got 'Reference'"
        ),
        "ghost_ops.use_backend(1).__enter__()": (
            "ValueError: ghost_ops.use_backend: name: expected 'cuda', 'triton', 'reference' or None, got 1"
        ),
        "ghost_ops.warm_up(None, image)": (
            "TypeError: ghost_ops.warm_up: net: expected a torch.nn.Module, got NoneType"
        ),
        'ghost_ops.warm_up(net, "image")': (
            "ValueError: ghost_ops.warm_up: example: expected a tensor or a tuple of arguments, got 'image'"
        ),
        "ghost_ops.warm_up(net, image, jobs=0)": "ValueError: ghost_ops.warm_up: jobs: expected at least 1, got 0",
        'ghost_ops.warm_up(net, image, architecture="H200")': (
            "ValueError: ghost_ops.warm_up: architecture: expected a name such as 'sm_90', got 'H200'"
        ),
        "ghost_ops.warm_up(net, image, architecture=90)": (
            "ValueError: ghost_ops.warm_up: architecture: expected a name such as 'sm_90', got 90"
        ),
        "ghost_ops.explain(None, image)": "TypeError: explain: net: expected a torch.nn.Module, got NoneType",
        "ghost_ops.explain(state, image)": "TypeError: explain: net: expected a torch.nn.Module, got OrderedDict",
        "ghost_ops.profile(None)": "TypeError: profile: net: expected a torch.nn.Module, got NoneType",
        "ghost_ops.profile(net, rounds=0)": "ValueError: profile: rounds: expected at least 1, got 0",
        "ghost_ops.profile(net, threads=True)": "ValueError: profile: threads: expected at least 1, got True",
        "ghost_ops.profile(net, image, dtype=torch.float16)": (
            "ValueError: profile: dtype: expected torch.float32 or torch.bfloat16, got torch.float16"
        ),
        "ghost_ops.profile(nn.Sequential(nn.Linear(3, 4)))": (
            "ValueError: profile: x: expected an input, since the net does not say how many channels an image has"
        ),
        "ghost_ops.no_such_name": "AttributeError: module 'ghost_ops' has no attribute 'no_such_name'",
    },
}
