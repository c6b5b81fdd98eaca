"""A kernel that does nothing, with as many arguments as ours have. Triton reads a kernel's source from its file."""

import triton


# fmt: off
@triton.jit
def empty_kernel(
    x, size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, size_8,
    size_9, size_10, size_11, size_12, size_13, size_14, size_15, size_16, size_17, size_18,
    size_19, size_20, size_21, size_22, size_23, size_24, size_25, size_26, size_27, size_28,
    size_29, size_30, size_31, size_32, size_33, size_34, size_35, size_36, size_37, size_38,
    size_39, size_40, size_41, size_42, size_43, size_44, size_45, size_46, size_47, size_48,
    size_49, size_50, size_51, size_52, size_53, size_54, size_55, size_56, size_57, size_58,
):
    pass
