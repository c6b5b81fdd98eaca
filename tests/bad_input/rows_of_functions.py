"""What operators and modules refuse, and what is said, word by word."""

ROWS: dict[str, dict[str, str]] = {
    "operators": {
        "F.ghost_module(None, w1, None, w2, None)": (
            "TypeError: ghost_ops.ghost_module: x: expected a tensor, got NoneType"
        ),
        "F.ghost_module(x[0], w1, None, w2, None)": (
            "ValueError: ghost_ops.ghost_module: x: expected 4 dimensions (N x C x H x W), got 3 (6x5x7)"
        ),
        "F.ghost_module(x.int(), w1, None, w2, None)": (
            "TypeError: ghost_ops.ghost_module: x: expected a floating-point dtype, got torch.int32"
        ),
        "F.ghost_module(x.to(torch.complex64), w1, None, w2, None)": (
            "TypeError: ghost_ops.ghost_module: x: expected a floating-point dtype, got torch.complex64"
        ),
        "F.ghost_module(x.to_sparse(), w1, None, w2, None)": (
            "TypeError: ghost_ops.ghost_module: x: expected a dense tensor, got torch.sparse_coo"
        ),
        "F.ghost_module(x, w1.to_sparse(), None, w2, None)": (
            "TypeError: ghost_ops.ghost_module: primary_weight: expected a dense tensor, got torch.sparse_coo"
        ),
        "F.ghost_module(x, w1, None, w2.to_sparse(), None)": (
            "TypeError: ghost_ops.ghost_module: cheap_weight: expected a dense tensor, got torch.sparse_coo"
        ),
        'F.ghost_module(x, w1, None, w2.to("meta"), None)': (
            "ValueError: ghost_ops.ghost_module: cheap_weight: expected the device of x, cpu, got meta"
        ),
        "F.ghost_module(x, w1.half(), None, w2, None)": (
            "TypeError: ghost_ops.ghost_module: primary_weight: expected the dtype of x, torch.float32, got "
            "torch.float16"
        ),
        'F.ghost_module(x, w1, None, w2, None, act="swish")': (
            "ValueError: ghost_ops.ghost_module: act: expected one of none, relu, relu6, leaky_relu, prelu, "
            "silu, hard_swish, gelu, gelu_tanh, mish, elu, hard_sigmoid, sigmoid, tanh, clamp, got 'swish'"
        ),
        'F.ghost_module(x, w1, None, w2, None, act_slope="0.1")': (
            "TypeError: ghost_ops.ghost_module: act_slope: expected a number, got '0.1'"
        ),
        "F.excite(x[..., 0, 0].to_sparse(), torch.ones(3, 6), None, torch.ones(6, 3), None)": (
            "TypeError: ghost_ops.excite: squeeze: expected a dense tensor, got torch.sparse_coo"
        ),
        'F.cheap_concat_train(x[:, :4], None, None, None, w2, None, None, None, cheap_act="swish")': (
            "ValueError: ghost_ops.cheap_concat_train: cheap_act: expected one of none, relu, relu6, "
            "leaky_relu, prelu, silu, hard_swish, gelu, gelu_tanh, mish, elu, hard_sigmoid, sigmoid, tanh, "
            "clamp, got 'swish'"
        ),
        "F.ghost_module(x, w1.double(), None, w2, None)": (
            "TypeError: ghost_ops.ghost_module: primary_weight: expected the dtype of x, torch.float32, got "
            "torch.float64"
        ),
        "F.ghost_module(x, w1, torch.ones(5), w2, None)": (
            "ValueError: ghost_ops.ghost_module: primary_bias: expected shape 4, got 5"
        ),
        "F.ghost_module(x, w1, None, w2[:7], None)": (
            "ValueError: ghost_ops.ghost_module: cheap_weight: expected a positive multiple of the 4 primary "
            "channels first, got 7x1x3x3"
        ),
        "F.ghost_module(x, w1, None, w2, None, act=None)": (
            "ValueError: ghost_ops.ghost_module: act: expected one of none, relu, relu6, leaky_relu, prelu, "
            "silu, hard_swish, gelu, gelu_tanh, mish, elu, hard_sigmoid, sigmoid, tanh, clamp, got None"
        ),
        "F.ghost_module(x, w1, None, w2, None, out_channels=13)": (
            "ValueError: ghost_ops.ghost_module: out_channels: expected 5 to 12 (4 primary, 8 cheap channels), got 13"
        ),
        'F.ghost_module(x, w1, None, w2, None, out_channels="12")': (
            "TypeError: ghost_ops.ghost_module: out_channels: expected an int, got '12'"
        ),
        "F.ghost_module(x, w1, None, w2, None, act_weight=torch.ones(1))": (
            "ValueError: ghost_ops.ghost_module: act_weight: expected a tensor with prelu, None without, got relu"
        ),
        "F.ghost_module(x, w1, None, w2, None, input_scale=torch.ones(2, 5))": (
            "ValueError: ghost_ops.ghost_module: input_scale: expected shape 2x6, got 2x5"
        ),
        "F.ghost_module(x, w1, None, w2, None, residual=x)": (
            "ValueError: ghost_ops.ghost_module: residual: expected shape 2x12x5x7, got 2x6x5x7"
        ),
        "F.ghost_module_train(x[:1, :, :1, :1], w1, None, None, None, w2, None, None, None)": (
            "ValueError: ghost_ops.ghost_module_train: x: expected more than 1 value per channel when "
            "training, got input size (1, 6, 1, 1)"
        ),
        "F.ghost_module_train(x, w1, None, None, None, w2, None, None, None, cheap_eps=None)": (
            "TypeError: ghost_ops.ghost_module_train: cheap_eps: expected a number, got NoneType"
        ),
        "F.ghost_module_train(x, w1, None, torch.ones(5), None, w2, None, None, None)": (
            "ValueError: ghost_ops.ghost_module_train: primary_gamma: expected shape 4, got 5"
        ),
        "F.ghost_module_eval(x, w1, None, None, None, mean, None, w2, None, None, None, means, means)": (
            "TypeError: ghost_ops.ghost_module_eval: primary_var: expected a tensor, got NoneType"
        ),
        "F.ghost_module_eval(x, w1, None, None, None, mean, means[:3], w2, None, None, None, means, means)": (
            "ValueError: ghost_ops.ghost_module_eval: primary_var: expected shape 4, got 3"
        ),
        "F.cheap_concat(x, w2, None)": (
            "ValueError: ghost_ops.cheap_concat: cheap_weight: expected a positive multiple of the 6 primary "
            "channels first, got 8x1x3x3"
        ),
        "F.cheap_concat(x[:, :4], w2, None, out_channels=4)": (
            "ValueError: ghost_ops.cheap_concat: out_channels: expected 5 to 12 (4 primary, 8 cheap channels), got 4"
        ),
        "F.depthwise(x, w2[:6], None, stride=-1)": (
            "ValueError: ghost_ops.depthwise: stride: expected at least 1, got -1"
        ),
        "F.depthwise(x, w2[:6], None, stride=1.0)": (
            "TypeError: ghost_ops.depthwise: stride: expected an int, got 1.0"
        ),
        "F.depthwise(x, w2, None)": (
            "ValueError: ghost_ops.depthwise: weight: expected shape 6x1xanyxany, got 8x1x3x3"
        ),
        "F.depthwise(x, w2[:6, :, :2], None)": (
            "ValueError: ghost_ops.depthwise: weight: expected a square kernel, got 6x1x2x3"
        ),
        "F.squeeze_excite(x, torch.ones(3, 6), None, torch.ones(6, 2), None)": (
            "ValueError: ghost_ops.squeeze_excite: expand_weight: expected shape 6x3, got 6x2"
        ),
        'F.squeeze_excite(x, torch.ones(3, 6), None, torch.ones(6, 3), None, gate="softmax")': (
            "ValueError: ghost_ops.squeeze_excite: gate: expected one of clamp, hard_sigmoid, sigmoid, "
            "identity, got 'softmax'"
        ),
        "F.squeeze_excite(x, torch.ones(3, 6), torch.ones(3, 1), torch.ones(6, 3), None)": (
            "ValueError: ghost_ops.squeeze_excite: reduce_bias: expected shape 3, got 3x1"
        ),
        "F.excite(x, torch.ones(3, 6), None, torch.ones(6, 3), None)": (
            "ValueError: ghost_ops.excite: squeeze: expected 2 dimensions (N x C), got 4 (2x6x5x7)"
        ),
        'F.excite(x[..., 0, 0], torch.ones(3, 6), None, torch.ones(6, 3), None, act="prelu")': (
            "ValueError: ghost_ops.excite: act: expected an activation without slopes, got 'prelu'"
        ),
        "F.batch_norm_act_train(x, torch.ones(6), torch.ones(5))": (
            "ValueError: ghost_ops.batch_norm_act_train: beta: expected shape 6, got 5"
        ),
        "F.batch_norm_act_train(x.bfloat16(), torch.ones(6).half(), None)": (
            "TypeError: ghost_ops.batch_norm_act_train: gamma: expected the dtype of z, torch.bfloat16, got "
            "torch.float16"
        ),
        "F.dfc_gate_train(x[:, :, :1], w1, None, None, rows, None, None, columns, None, None)": (
            "ValueError: ghost_ops.dfc_gate_train: x: expected at least two rows and columns, got 1x7"
        ),
        "F.dfc_gate_train(x, w1, None, None, columns, None, None, columns, None, None)": (
            "ValueError: ghost_ops.dfc_gate_train: row_weight: expected shape 4x1x1xany, got 4x1x5x1"
        ),
        "F.branched_module_train(x, w1, None, None, w2[:4], None, None, branches=3)": (
            "ValueError: ghost_ops.branched_module_train: branches: expected an int that divides the 4 primary "
            "channels, got 3"
        ),
        "F.branched_module_train(x, w1, None, None, w2[:4], None, None, branches=0)": (
            "ValueError: ghost_ops.branched_module_train: branches: expected an int that divides the 4 primary "
            "channels, got 0"
        ),
        "torch.ops.ghost_ops.depthwise(x, w2, None, 1)": (
            "RuntimeError: ghost_ops.depthwise: weight: expected shape 6x1x3x3, got 8x1x3x3"
        ),
    },
    "modules": {
        "GhostModule(0, 8)": "ValueError: GhostModule: inp: expected a positive int, got 0",
        "GhostModule(-3, 8)": "ValueError: GhostModule: inp: expected a positive int, got -3",
        'GhostModule("3", 8)': "TypeError: GhostModule: inp: expected a positive int, got '3'",
        "GhostModule(3.0, 8)": "TypeError: GhostModule: inp: expected a positive int, got 3.0",
        "GhostModule(True, 8)": "TypeError: GhostModule: inp: expected a positive int, got True",
        "GhostModule(3, 0)": "ValueError: GhostModule: oup: expected a positive int, got 0",
        "GhostModule(3, None)": "TypeError: GhostModule: oup: expected a positive int, got None",
        "GhostModule(3, 8, 2)": "ValueError: GhostModule: kernel_size: expected an odd positive int, got 2",
        "GhostModule(3, 8, 1, 0)": "ValueError: GhostModule: ratio: expected a positive int, got 0",
        "GhostModule(3, 8, 1, 2, 4)": "ValueError: GhostModule: dw_size: expected an odd positive int, got 4",
        "GhostModule(3, 8, 1, 2, 3, 0)": "ValueError: GhostModule: stride: expected a positive int, got 0",
        "GhostModule(3, 8, kernel_size=(3, 3))": (
            "TypeError: GhostModule: kernel_size: expected an odd positive int, got (3, 3)"
        ),
        "GhostModule(3, 8, ratio=1.5)": "TypeError: GhostModule: ratio: expected a positive int, got 1.5",
        "ghost_ops.FusedGhostModule(3, 8, dw_size=0)": (
            "ValueError: FusedGhostModule: dw_size: expected an odd positive int, got 0"
        ),
        "GhostConv2d(3, 8, ratio=1)": "ValueError: GhostConv2d: ratio: expected at least 2, got 1",
        "GhostConv2d(3, 8, kernel_size=4)": (
            "ValueError: GhostConv2d: kernel_size: expected an odd positive int, got 4"
        ),
        'GhostConv2d(3, 8, stride="2")': "TypeError: GhostConv2d: stride: expected a positive int, got '2'",
        "GhostModuleV2(3, 0)": "ValueError: GhostModuleV2: oup: expected a positive int, got 0",
        "RepGhostModule(0, 8)": "ValueError: RepGhostModule: inp: expected a positive int, got 0",
        "SELayer(0)": "ValueError: SELayer: channel: expected a positive int, got 0",
        "SELayer(3, reduction=4)": "ValueError: SELayer: reduction: expected at most the 3 channels, got 4",
        "SELayer(8, reduction=0)": "ValueError: SELayer: reduction: expected a positive int, got 0",
        'SELayer(8, reduction="4")': "TypeError: SELayer: reduction: expected a positive int, got '4'",
        "SqueezeExcite(8, 0)": "ValueError: SqueezeExcite: ratio: expected a positive number, got 0",
        "SqueezeExcite(8, -1.0)": "ValueError: SqueezeExcite: ratio: expected a positive number, got -1.0",
        "SqueezeExcite(8, nan)": "ValueError: SqueezeExcite: ratio: expected a positive number, got nan",
        "SqueezeExcite(8, inf)": "ValueError: SqueezeExcite: ratio: expected a positive number, got inf",
        "SqueezeExcite(8, True)": "TypeError: SqueezeExcite: ratio: expected a positive number, got True",
        'SqueezeExcite(8, "0.25")': "TypeError: SqueezeExcite: ratio: expected a positive number, got '0.25'",
        'SqueezeExcite("8", 0.25)': "TypeError: SqueezeExcite: channels: expected a positive int, got '8'",
        "ghost_ops.FusedSqueezeExcite(8, None)": (
            "TypeError: FusedSqueezeExcite: ratio: expected a positive number, got None"
        ),
        "GhostBottleneck(8, 16, 0)": "ValueError: GhostBottleneck: out_chs: expected a positive int, got 0",
        "GhostBottleneck(8, 16, 8, dw_kernel_size=2)": (
            "ValueError: GhostBottleneck: dw_kernel_size: expected an odd positive int, got 2"
        ),
        "GhostBottleneck(8, 16, 8, stride=0)": "ValueError: GhostBottleneck: stride: expected a positive int, got 0",
        "GhostBottleneck(8, 16, 8, se_ratio=-0.5)": (
            "ValueError: GhostBottleneck: se_ratio: expected None or a number of at least 0, got -0.5"
        ),
        'GhostBottleneck(8, 16, 8, se_ratio="0.25")': (
            "TypeError: GhostBottleneck: se_ratio: expected None or a number of at least 0, got '0.25'"
        ),
        "GhostBottleneckV3(8, 16, 8, stride=None)": (
            "TypeError: GhostBottleneckV3: stride: expected a positive int, got None"
        ),
        'ghost_ops.FusedGhostBottleneck(8, 16, 8, memory="tiny")': (
            "ValueError: FusedGhostBottleneck: memory: expected one of balanced, low, fast, got 'tiny'"
        ),
        "SyncBatchNorm(6)(x[:, 0, 0, 0])": (
            "ValueError: SyncBatchNorm: expected at least 2 dimensions and one channel, got (2,)"
        ),
    },
}
