import json

import pytest

from ghost_ops.bench.timing import Timing

from .command import invoke


def test_demo_is_handed_its_options(monkeypatch, tmp_path):
    pytest.importorskip("sklearn")
    import ghost_ops.demo

    calls = []
    monkeypatch.setattr(ghost_ops.demo, "run_demo", lambda **kwargs: calls.append(kwargs))
    result = invoke("demo", "--output", str(tmp_path / "d.png"), "--threads", "2", "--quick")
    assert result.exit_code == 0, result.output
    assert calls == [{"output": tmp_path / "d.png", "threads": 2, "quick": True}]


def test_json(monkeypatch, tmp_path):
    pytest.importorskip("sklearn")
    import ghost_ops.demo
    from ghost_ops.demo import Result
    from ghost_ops.demo.digits import Run
    from ghost_ops.demo.photos import Agreement, Photos

    photos = Photos(
        Agreement(*[0.0] * len(Agreement.__dataclass_fields__)), {1: {"eager": Timing((0.5, 0.25, 1.0), 3)}}
    )

    def run_demo(output, console, **_):
        console.print("a table")
        return Result(photos, {"plain": Run(8, 0.5, [1.0, 0.5])}, output)

    monkeypatch.setattr(ghost_ops.demo, "run_demo", run_demo)
    result = invoke("demo", "--output", str(tmp_path / "d.png"), "--json")
    assert result.exit_code == 0 and "a table" in result.stderr
    found = json.loads(result.stdout)
    assert found["output"] == str(tmp_path / "d.png") and found["inference_seconds"] == {"1": {"eager": 0.5}}
    assert found["training"]["plain"]["losses"] == [1.0, 0.5]
