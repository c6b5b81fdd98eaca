"""A fixture for tests of a frozen net and its parts: freezing a bottleneck takes a tenth of a second, for each part."""

import pytest


@pytest.fixture
def short_net(monkeypatch):
    """Give GhostNets their first two stages only: two bottlenecks."""
    from ghost_ops.models import ghostnet

    monkeypatch.setattr(ghostnet, "STAGES", ghostnet.STAGES[:2])
