"""What the machine code of the CUDA C++ stages costs: it only gets better, and the planner counts with it."""

from __future__ import annotations

import re
import warnings

import pytest

pytest.importorskip("triton", reason="the disassembler comes with Triton")

from benchmarks.static_model import cuda
from tests.cuda.test_plan import launches

KNOWN = cuda.load()


@pytest.fixture(scope="module")
def found():
    if cuda.nvcc() is None:
        warnings.warn("nvcc was not found: NO CUDA KERNEL WAS LOOKED AT", UserWarning, stacklevel=1)
        pytest.skip("nvcc was not found: no CUDA kernel was looked at")
    if cuda.version() != KNOWN["nvcc"]:
        pytest.skip(f"the counts are of nvcc {KNOWN['nvcc']}, this is {cuda.version()}")
    return cuda.measure()


def test_counts_only_get_better(found):
    assert found["kernel"]["stack"] == 0
    for kind in ("stages", "kernel"):
        bad = cuda.complaints(found[kind], KNOWN[kind])
        assert not bad, "python -m benchmarks.static_model --write-budgets\n" + "\n".join(bad)


@pytest.mark.parametrize("stage", cuda.PROTOTYPES)
def test_stages_have_no_more_than_prototypes(found, stage):
    """Though their sizes are known only at run time, and maps are rings."""
    assert found["stages"][stage] / cuda.RESULTS[stage] <= cuda.PROTOTYPES[stage]


def test_the_planner_counts_what_the_machine_code_has():
    text = (cuda.ROOT / "csrc" / "cuda" / "cost.h").read_text()
    for stage, known in KNOWN["stages"].items():
        name = "k" + "".join(part.capitalize() for part in stage.removesuffix("_stage").split("_"))
        (number,) = re.findall(rf"\b{name} = (\d+)", text)
        assert abs(int(number) - known) <= 0.02 * known, (stage, number, known)


@pytest.mark.parametrize("name", KNOWN["stages"])
def test_a_worse_count_is_an_error(name):
    known = KNOWN["stages"]
    assert cuda.complaints(known, known) == []
    assert cuda.complaints(known | {name: known[name] + 1}, known) == [
        f"{name}: {known[name] + 1}, it was {known[name]}"
    ]
    (said,) = cuda.complaints(known | {name: known[name] // 2}, known)
    assert "write it down" in said


def test_predicted_times():
    """Of GhostNet-100 on an H200, in float16: predictions, not measurements. The sixteen bottlenecks by themselves, and
    the first convolution, the last one and the linear layers."""
    for batch, bottlenecks, ends in ((256, 1.04e-3, 1.4e-4), (1, 1.66e-4, 1.7e-5)):
        found = [0.0, 0.0]
        for names, one in launches(batch):
            found[not any(name.startswith("bottleneck") for name in names)] += one.cycles / 1.98e9
        print(batch, found)
        assert found[0] <= bottlenecks and found[1] <= ends, (batch, found)
