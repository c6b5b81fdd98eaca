"""Counts of the machine code of the CUDA C++ kernels: they only get better, and what is known is up to date."""

from __future__ import annotations

import warnings

import pytest

pytest.importorskip("triton", reason="the disassembler comes with Triton")

from benchmarks.static_model import cuda

KNOWN = cuda.load()


@pytest.fixture(scope="module")
def functions():
    if cuda.nvcc() is None:
        warnings.warn("nvcc was not found: NO CUDA KERNEL WAS LOOKED AT", UserWarning, stacklevel=1)
        pytest.skip("nvcc was not found: no CUDA kernel was looked at")
    if cuda.version() != KNOWN["nvcc"]:
        pytest.skip(f"the counts are of nvcc {KNOWN['nvcc']}, this is {cuda.version()}")
    return cuda.compile_kernels(KNOWN["dtype"], KNOWN["architecture"])


@pytest.mark.parametrize("kernel", cuda.KERNELS)
def test_counts_only_get_better(functions, kernel):
    found = cuda.counts(functions[kernel])
    print(kernel, found)
    assert found["stack"] == 0
    bad = cuda.complaints(found, KNOWN["kernels"][kernel])
    assert not bad, "python -m benchmarks.static_model --write-budgets\n" + "\n".join(bad)


@pytest.mark.parametrize("name", KNOWN["kernels"]["bottleneck_kernel"])
def test_a_worse_count_is_an_error(name):
    known = KNOWN["kernels"]["bottleneck_kernel"]
    assert cuda.complaints(known, known) == []
    worse = -1 if name in cuda.AT_LEAST else 1
    assert cuda.complaints(known | {name: known[name] + worse}, known) == [
        f"{name}: {known[name] + worse}, it was {known[name]}"
    ]
    if known[name]:
        better = 2 * known[name] if name in cuda.AT_LEAST else known[name] // 2
        (said,) = cuda.complaints(known | {name: better}, known)
        assert "write it down" in said
