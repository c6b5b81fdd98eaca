"""What type checkers read in the place of ``functional.py``, which finds the operators as it is imported."""

import ast
from pathlib import Path

import ghost_ops
from ghost_ops import functional


def test_the_stub_names_every_operator():
    stub = ast.parse((Path(ghost_ops.__file__).parent / "functional.pyi").read_text())
    names = [alias.asname for node in stub.body for alias in getattr(node, "names", ())]
    assert sorted(names) == functional.__all__
