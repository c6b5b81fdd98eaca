from ..nn.conftest import fused_routes  # noqa: F401  (autouse: fused routes even where the kernels are not built)
