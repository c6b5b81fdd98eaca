"""Names that moved: for one release they are found where they were, with a warning; modules without one."""

import importlib
from operator import attrgetter

import pytest

import ghost_ops
from ghost_ops import backends, dispatch, fused, moved, nn, program
from ghost_ops.backends import steps


@pytest.mark.parametrize("old, new", [("use_backend", "use_backend"), ("choose", "select"), ("BACKENDS", "BACKENDS")])
def test_old_names_warn(old, new):
    with pytest.warns(DeprecationWarning, match=rf"ghost_ops\.backends\.{old} is ghost_ops\.dispatch\.{new} now"):
        assert getattr(backends, old) is getattr(dispatch, new)


@pytest.mark.parametrize("name", [n for n in fused.__all__ if n in ("FusedGhostModule", "GhostParts", "FrozenProgram")])
def test_fused_modules_are_found_in_nn(name):
    with pytest.warns(DeprecationWarning, match=rf"ghost_ops\.nn\.{name} is ghost_ops\.fused\.{name} now"):
        assert getattr(nn, name) is getattr(fused, name)


@pytest.mark.parametrize("old, new", [("Dense", "Linear"), ("Ghost", "Ghost"), ("encode", "encode"), ("BIAS", "BIAS")])
def test_old_names_of_steps_warn(old, new):
    with pytest.warns(DeprecationWarning, match=rf"ghost_ops\.backends\.steps\.{old} is ghost_ops\.program\.{new} now"):
        assert getattr(steps, old) is getattr(program, new)


def test_others_do_not_exist():
    for module in (backends, nn, steps):
        with pytest.raises(AttributeError, match="no attribute 'Choice2'"):
            _ = module.Choice2
    assert ghost_ops.use_backend is dispatch.use_backend
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("ghost_ops.nn.something")


def test_old_modules_have_the_attributes_of_the_new(recwarn):
    """By these names pickles of the version before find their classes."""
    for old, (new, renamed) in moved._MODULES.items():
        target = importlib.import_module(f"ghost_ops.{new}")
        found = importlib.import_module(f"ghost_ops.{old}")
        assert all(getattr(found, name) is attrgetter(now)(target) for name, now in renamed.items())
        assert all(getattr(found, name) is value for name, value in vars(target).items() if name[:2] != "__")
    assert not [w for w in recwarn if "ghost_ops" in str(w.message)]
