"""Backends describe themselves; operators are found by the names of files."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch

from ghost_ops import dispatch, functional
from ghost_ops.backends import native, reference
from ghost_ops.backends.registry import BACKENDS, SCHEMAS, Backend, find
from ghost_ops.ops import FUNCTIONS
from tests.helpers import on

REFERENCE = "ghost_ops.backends.reference"
CPU = torch.device("cpu")


@pytest.mark.parametrize("operator", SCHEMAS)
def test_the_reference_has_every_operator(operator):
    found = getattr(reference, operator)
    assert found.__name__ == operator and found is find(REFERENCE, operator)


def test_the_longest_file_name_counts():
    assert find(REFERENCE, "ghost_module_train_backward").__module__ == f"{REFERENCE}.ghost_module_train"
    assert find(REFERENCE, "ghost_module_eval").__module__ == f"{REFERENCE}.ghost_module"
    assert find(REFERENCE, "depthwise_backward").__module__ == f"{REFERENCE}.depthwise"
    assert find(REFERENCE, "ghost_module_of_tomorrow") is None and find(REFERENCE, "unknown") is None


def test_the_reference_comes_last_and_refuses_nothing():
    assert list(BACKENDS) == ["native", "cuda", "triton", "reference"]
    assert BACKENDS["reference"].refuse("anything", torch.device("meta"), torch.int8, 9) is None


@pytest.fixture
def another(monkeypatch):
    """A backend that is asked first."""
    made = Backend(
        "another",
        is_candidate=lambda device, forced: device.type == "cpu",
        refuse_device=lambda device: None,
        has=lambda operator: operator in ("depthwise", "program"),
        dtypes=(torch.float32, torch.float64),
        kernels=(3, 5),
        fuses_epilogues=True,
        describe_program=lambda x, packed, steps: f"{len(steps)} steps",
    )
    backends = {"another": made, **BACKENDS}
    monkeypatch.setattr(dispatch, "BACKENDS", backends)
    dispatch._select.cache_clear()
    yield backends
    dispatch._select.cache_clear()


def test_a_backend_is_chosen_by_its_description(another):
    x = torch.zeros(1, 2, 3, 4)
    assert dispatch.select("depthwise", x, 3) == on("another", "depthwise")
    assert dispatch.select("depthwise", x.double(), 5).backend == "another"
    for operator, given, kernel, why in (
        ("excite", x, None, "not another, since it has no excite"),
        ("depthwise", x.half(), 3, "its kernels take float32 and float64, the input is float16"),
        ("depthwise", x, 7, "its kernels take a depthwise convolution of size 3 or 5, this one is 7"),
    ):
        found = dispatch.select(operator, given, kernel)
        assert found.backend != "another" and why in found.why
    decision = dispatch.select("program", x)
    assert dispatch.fuses_epilogues(decision) and not dispatch.fuses_epilogues(on("native", "program"))
    assert dispatch.describe_program(decision, x, x, [1, 2]).runs == "program on another, 2 steps"
    assert dispatch.describe_program(on("native", "program"), x, x, []) == on("native", "program")


def test_a_backend_that_does_not_run_here(another):
    another["another"] = replace(another["another"], refuse_device=lambda device: f"it has no kernels for {device}")
    assert "not another, since it has no kernels for cpu" in dispatch.select("depthwise", torch.zeros(1), 3).why


@pytest.mark.skipif(not native.available(), reason="needs the library")
def test_native_has_what_is_registered():
    assert not native.BACKEND.has("cheap_concat_backward_of_tomorrow")
    assert all(map(native.BACKEND.has, SCHEMAS))
    assert native.BACKEND.refuse("depthwise", CPU, torch.float32, 3) is None


def test_public_functions_are_those_of_the_operators():
    assert sorted(FUNCTIONS) == functional.__all__ and set(FUNCTIONS) <= set(SCHEMAS)
    for name, function in FUNCTIONS.items():
        assert getattr(functional, name) is function and function.__name__ == name
        text = inspect.getdoc(function)  # not __doc__, of which Python 3.13 has the indentation no more
        assert all(f"\n{section}:\n" in text for section in ("Args", "Returns", "Raises")), name
