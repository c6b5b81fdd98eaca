"""pnnx, which makes nets for ncnn of traces."""

import warnings

import pytest

from .nets import assert_same, every_pair, image, made, need

pnnx = need("pnnx")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@every_pair
def test_convert(name, way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, plain = made(name, way)
    x = image()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made_by_pnnx = pnnx.export(net, str(tmp_path / "net.pt"), x)
    assert_same(made_by_pnnx(x), plain(x))
    written = (tmp_path / "net.pnnx.param").read_text()
    assert "nn.Conv2d" in written and "ghost_ops" not in written
