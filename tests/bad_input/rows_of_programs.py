"""What commands, the example and the environment refuse, and what is said, word by word."""

ROWS: dict[str, dict[str, str]] = {
    "commands": {
        "ghost-ops nothing": "No such command 'nothing'.",
        "ghost-ops freeze": "Missing argument 'MODEL'.",
        "ghost-ops freeze nowhere.at:all -o new.pt2": "there is no module 'nowhere', here or installed",
        "ghost-ops freeze tests.cli.nets:smal -o new.pt2": "tests.cli.nets has no 'smal'; did you mean small?",
        "ghost-ops freeze tests.cli.nets:CONSTANT -o new.pt2": (
            "tests.cli.nets:CONSTANT is a int: expected a function or class that returns a torch.nn.Module"
        ),
        "ghost-ops freeze tests.cli.nets:raises -o new.pt2": (
            "tests.cli.nets:raises() raised ValueError: no such luck"
        ),
        "ghost-ops freeze tests.cli.nets:returns_none -o new.pt2": (
            "tests.cli.nets:returns_none() returned a NoneType: expected a torch.nn.Module"
        ),
        "ghost-ops freeze tests.cli.nets:needs -o new.pt2": (
            "tests.cli.nets:needs() raised TypeError: needs() missing 1 required positional argument: 'size'"
        ),
        "ghost-ops freeze tests.cli.nets:small": "Missing option '-o' / '--output'.",
        "ghost-ops freeze tests.cli.nets:small -o new": "new: expected a name that ends in .pt2 or .pt",
        "ghost-ops freeze tests.cli.nets:small -o new.onnx": "new.onnx: expected a name that ends in .pt2 or .pt",
        "ghost-ops freeze tests.cli.nets:small -o kept.pt2": "kept.pt2 exists: --force overwrites it",
        "ghost-ops freeze tests.cli.nets:small -o nowhere/new.pt2": (
            "nowhere/new.pt2 cannot be written: the folder nowhere does not exist"
        ),
        "ghost-ops freeze tests.cli.nets:small -o folder.pth": "folder.pth: expected a name that ends in .pt2 or .pt",
        "ghost-ops freeze tests.cli.nets:small -o new.pt2 --size 0": (
            "Invalid value for '--size': expected pixels such as 224 or 224x320, got '0'"
        ),
        "ghost-ops freeze tests.cli.nets:small -o new.pt2 --size 3x": (
            "Invalid value for '--size': expected pixels such as 224 or 224x320, got '3x'"
        ),
        "ghost-ops freeze tests.cli.nets:small -o new.pt2 --batch 0": (
            "Invalid value for '--batch': 0 is not in the range x>=1."
        ),
        "ghost-ops freeze tests.cli.nets:small -o new.pt2 --dtype float64": (
            "Invalid value for '--dtype': 'float64' is not one of 'float32', 'bfloat16'."
        ),
        "ghost-ops freeze tests.cli.nets:small -o new.pt2 --model ghostnet_050": (
            "--model is for a file of weights, to say of which net they are"
        ),
        "ghost-ops freeze tests.cli.nets:plain_linear --size 8 -o new.pt2": (
            "nothing of tests.cli.nets:plain_linear can be frozen: nothing of this Linear was frozen: linear: "
            "no step computes a Linear"
        ),
        "ghost-ops freeze tests.cli.nets:features -o new.pt2": (
            "the net has no convolution that says how many channels an image has: in Python, "
            "ghost_ops.explain, profile and freeze take an example"
        ),
        "ghost-ops freeze tests.cli.nets:two_inputs -o new.pt2": (
            "the net does not take float32 2 x 3 x 224 x 224; is --size right?: TypeError: "
            "two_inputs.<locals>.Two.forward() missing 1 required positional argument: 'y'"
        ),
        "ghost-ops freeze state.pth -o new.pt2": (
            "state.pth holds weights only: say of which net, by --model NAME or --model package.module:factory"
        ),
        "ghost-ops freeze none.pth --model tests.cli.nets:small -o new.pt2": (
            "none.pth does not exist, or is not a file"
        ),
        "ghost-ops freeze empty.pth --model tests.cli.nets:small -o new.pt2": (
            "empty.pth: the file is truncated, or not a .pth file (EOFError)"
        ),
        "ghost-ops freeze noise.pth --model tests.cli.nets:small -o new.pt2": (
            "noise.pth: the file is truncated, or not a .pth file of tensors only; other objects are not "
            "loaded, since that could run code: save a state_dict, torch.save(net.state_dict(), path)"
        ),
        "ghost-ops freeze object.pth --model tests.cli.nets:small -o new.pt2": (
            "object.pth: the file is truncated, or not a .pth file of tensors only; other objects are not "
            "loaded, since that could run code: save a state_dict, torch.save(net.state_dict(), path)"
        ),
        "ghost-ops freeze list.pth --model tests.cli.nets:small -o new.pt2": (
            "list.pth: expected a state_dict, names and tensors, got a list"
        ),
        "ghost-ops freeze state.pth --model tests.cli.nets:small -o new.pt2": (
            "state.pth is not a state_dict of tests.cli.nets:small: conv_stem.weight is unexpected; bn1.weight "
            "is unexpected; bn1.bias is unexpected; and 527 more"
        ),
        "ghost-ops export tests.cli.nets:small -o new.onnx --to tflite": (
            "Invalid value for '--to': 'tflite' is not one of 'onnx', 'openvino', 'aoti', 'pt2'."
        ),
        "ghost-ops export tests.cli.nets:small -o new.onnx --to onnx --plain": (
            "--plain is for aoti and pt2: onnx gets the plain net"
        ),
        "ghost-ops export tests.cli.nets:small -o new.txt --to onnx": "new.txt: expected a name that ends in .onnx",
        "ghost-ops explain": "Missing argument 'MODEL'.",
        "ghost-ops explain tests.cli.nets:small --size -1": (
            "Invalid value for '--size': expected pixels such as 224 or 224x320, got '-1'"
        ),
        "ghost-ops profile tests.cli.nets:small --threads 0": (
            "Invalid value for '--threads': 0 is not in the range x>=1."
        ),
        "ghost-ops profile tests.cli.nets:small --dtype int8": (
            "Invalid value for '--dtype': 'int8' is not one of 'float32', 'bfloat16'."
        ),
        "ghost-ops convert none.pth new.pth --model ghostnet_050": "none.pth does not exist, or is not a file",
        "ghost-ops convert state.pth new.pth --model ghostnet_10": (
            "unknown model 'ghostnet_10': ghost_ops.models has no such net; did you mean ghostnet_130 or "
            "ghostnet_100 or ghostnetv3_160?"
        ),
        "ghost-ops convert state.pth new.pth --model ghostnet_130": (
            "this is not a checkpoint of ghostnet_130: conv_stem.weight has shape (8, 3, 3, 3), expected (20, 3, "
            "3, 3); bn1.weight has shape (8,), expected (20,); bn1.bias has shape (8,), expected (20,); and 426 more"
        ),
        "ghost-ops convert state.pth kept.pth --model ghostnet_050": "kept.pth exists: --force overwrites it",
        "ghost-ops convert state.pth new.onnx --model ghostnet_050": (
            "new.onnx: expected a name that ends in .pth or .pt or .bin or .tar or .safetensors"
        ),
        "ghost-ops convert state.pth": "Missing argument 'OUTPUT'.",
        "ghost-ops bench --threads 0": "Invalid value for '--threads': 0 is not in the range x>=1.",
        "ghost-ops bench --dtype bfloat16": "--dtype is for --frozen: the other parts run in float32",
        "ghost-ops demo --threads 0": "Invalid value for '--threads': 0 is not in the range x>=1.",
        "ghost-ops profile tests.cli.nets:small --json nowhere/x.json": (
            "nowhere/x.json cannot be written: the folder nowhere does not exist"
        ),
        "ghost-ops profile tests.cli.nets:small --rounds 0": (
            "Invalid value for '--rounds': 0 is not in the range x>=1."
        ),
    },
    "example": {
        "train.py --data nowhere": "Invalid value for '--data': Directory 'nowhere' does not exist.",
        "train.py --data folder.pth": (
            "Invalid value: expected the folders train and val in folder.pth, there is no train"
        ),
        "train.py --arch resnet": (
            "Invalid value for '--arch': 'resnet' is not one of 'small', 'ghostnet_050', 'ghostnet_100', "
            "'ghostnet_130'."
        ),
        "train.py --epochs 0": "Invalid value for '--epochs': 0 is not in the range x>=1.",
        "train.py --batch-size 1": "Invalid value for '--batch-size': 1 is not in the range x>=2.",
        "train.py --accumulate 0": "Invalid value for '--accumulate': 0 is not in the range x>=1.",
        "train.py --lr 0": "Invalid value for '--lr': 0.0 is not in the range x>0.",
        "train.py --lr nan": "Invalid value for '--lr': expected a finite number, got nan",
        "train.py --lr inf": "Invalid value for '--lr': expected a finite number, got inf",
        "train.py --weight-decay nan": "Invalid value for '--weight-decay': expected a finite number, got nan",
        "train.py --ema nan": "Invalid value for '--ema': expected a finite number, got nan",
        "train.py --warmup -1": "Invalid value for '--warmup': -1.0 is not in the range x>=0.",
        "train.py --epochs 2 --warmup 3": "Invalid value for --warmup: expected at most the 2 epochs",
        "train.py --label-smoothing 2": "Invalid value for '--label-smoothing': 2.0 is not in the range 0<=x<=1.",
        "train.py --ema 1": "Invalid value for '--ema': 1.0 is not in the range 0<x<1.",
        "train.py --side 4": "Invalid value for '--side': 4 is not in the range x>=8.",
        "train.py --amp float64": "Invalid value for '--amp': 'float64' is not one of 'off', 'bfloat16', 'float16'.",
        "train.py --plain --memory low": "--memory is of fused nets: leave out --plain or --memory",
        "train.py --plain --cuda-graph": "--cuda-graph is of fused nets: leave out --plain or --cuda-graph",
        "train.py --batch-size 1000 --accumulate 2": (
            "Invalid value for --batch-size: expected no more than the 1437 images in one step, got 1000 a "
            "batch, times 2 batches, times 1 processes"
        ),
        "train.py --out kept.pt2": "Invalid value for '--out': Directory 'kept.pt2' is a file.",
        "train.py --out folder.pth --resume": (
            "Invalid value for --resume: expected a checkpoint to go on from, there is no folder.pth/checkpoint.pt"
        ),
        "train.py --seed -1": "Invalid value for '--seed': -1 is not in the range x>=0.",
        "train.py --workers -1": "Invalid value for '--workers': -1 is not in the range x>=0.",
        "train.py --stop-after 0": "Invalid value for '--stop-after': 0 is not in the range x>=1.",
    },
    "environment": {
        "GHOST_OPS_BACKEND=abc": "ValueError: GHOST_OPS_BACKEND: expected 'native' or 'reference', got 'abc'",
        "GHOST_OPS_BACKEND=Native": "ValueError: GHOST_OPS_BACKEND: expected 'native' or 'reference', got 'Native'",
        "GHOST_OPS_GPU=vulkan": "ValueError: GHOST_OPS_GPU: expected 'cuda' or 'triton', got 'vulkan'",
        "GHOST_OPS_LAUNCHES=c++": "ValueError: GHOST_OPS_LAUNCHES: expected 'python', got 'c++'",
        "GHOST_OPS_ISA=sse9": (
            "ValueError: GHOST_OPS_ISA: expected 'amx', 'avx512bf16', 'avx512', 'avx2' or 'baseline', got 'sse9'"
        ),
        "GHOST_OPS_ISA=avx2,baseline": (
            "ValueError: GHOST_OPS_ISA: expected 'amx', 'avx512bf16', 'avx512', 'avx2' or 'baseline', got "
            "'avx2,baseline'"
        ),
        "GHOST_OPS_KEEP_MB=abc": (
            "ValueError: GHOST_OPS_KEEP_MB: expected a number of MiB from 0 to 8796093022207, in digits, got 'abc'"
        ),
        "GHOST_OPS_KEEP_MB=-1": (
            "ValueError: GHOST_OPS_KEEP_MB: expected a number of MiB from 0 to 8796093022207, in digits, got '-1'"
        ),
        "GHOST_OPS_KEEP_MB=1.5": (
            "ValueError: GHOST_OPS_KEEP_MB: expected a number of MiB from 0 to 8796093022207, in digits, got '1.5'"
        ),
        "GHOST_OPS_KEEP_MB=8796093022208": (
            "ValueError: GHOST_OPS_KEEP_MB: expected a number of MiB from 0 to 8796093022207, in digits, got "
            "'8796093022208'"
        ),
    },
}
