"""Names that moved: for one release they are found where they were, with a warning."""

import pytest

import ghost_ops
from ghost_ops import backends, dispatch, program
from ghost_ops.backends import steps


@pytest.mark.parametrize("old, new", [("use_backend", "use_backend"), ("choose", "select"), ("BACKENDS", "BACKENDS")])
def test_old_names_warn(old, new):
    with pytest.warns(DeprecationWarning, match=rf"ghost_ops\.backends\.{old} is ghost_ops\.dispatch\.{new} now"):
        assert getattr(backends, old) is getattr(dispatch, new)


@pytest.mark.parametrize("old, new", [("Dense", "Linear"), ("Ghost", "Ghost"), ("encode", "encode"), ("BIAS", "BIAS")])
def test_old_names_of_steps_warn(old, new):
    with pytest.warns(DeprecationWarning, match=rf"ghost_ops\.backends\.steps\.{old} is ghost_ops\.program\.{new} now"):
        assert getattr(steps, old) is getattr(program, new)


def test_others_do_not_exist():
    with pytest.raises(AttributeError, match="no attribute 'Choice2'"):
        _ = backends.Choice2
    with pytest.raises(AttributeError, match="no attribute 'Convolution'"):
        _ = steps.Convolution
    assert ghost_ops.use_backend is dispatch.use_backend
