import json

import pytest

from ghost_ops import bench as benchmark
from ghost_ops import verify as checks
from ghost_ops.bench import roofline
from ghost_ops.bench.results import PartResult, Result
from ghost_ops.bench.roofline import Limits

from .command import invoke

EAGER = "--baselines", "eager", "--quick", "--rounds", "1"
BENCH = ["bench", "--modules", "--case", "960-160@7", "--batch", "1", *EAGER]


@pytest.fixture(autouse=True)
def limits(request, monkeypatch):
    """Those of a made-up machine, as measuring them takes seconds; a test of its own measures them."""
    if "measured" not in request.fixturenames:
        rates, sizes = {"L2": 1e11, "L3": 5e10, "DRAM": 1e10}, {"L2": 1 << 20, "L3": 1 << 24}
        monkeypatch.setattr(
            roofline, "measure", lambda threads, *_, **__: Limits(threads, 1e11, "made up", rates, sizes)
        )


@pytest.fixture
def measured():
    """Asks for the limits of this machine."""


def test_bench_json_alone_on_standard_output(measured):
    result = invoke(*BENCH, "--json", "-")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {row["baseline"] for row in found["results"]} == {"ghost_ops", "frozen", "eager", "eager_nchw"}
    assert {row["status"] for row in found["results"]} == {"ok"}
    assert all(row.keys() == set(Result.__dataclass_fields__) for row in found["results"])
    assert found["limits"][0]["threads"] == 1 and found["summary"][0]["cases"] == 1


def test_bench_outside_of_a_checkout(monkeypatch):
    """In a wheel there are PyTorch's baselines, and what needs the rest says so."""
    monkeypatch.setattr(benchmark, "extend", lambda: False)
    result = invoke(*BENCH)
    assert result.exit_code == 0 and "960-160@7" in result.stdout and "from a checkout" in result.stderr
    for option in ("--frozen",), ("--plot", "x.png"):
        result = invoke("bench", *option)
        assert result.exit_code == 1 and f"{option[0]} needs a checkout" in result.output


def test_names_of_the_release_before():
    result = invoke(*["--peers" if word == "--baselines" else word for word in BENCH], "--json", "-")
    assert {row["baseline"] for row in json.loads(result.stdout)["results"]} >= {"eager", "eager_nchw"}
    with pytest.warns(DeprecationWarning, match="now ghost_ops.verify"):
        assert benchmark.verify is checks


def test_bench_table_file_and_picture(tmp_path):
    pytest.importorskip("matplotlib")
    paths = tmp_path / "bench.json", tmp_path / "bench.png"
    result = invoke(*BENCH, "--json", str(paths[0]), "--plot", str(paths[1]))
    assert result.exit_code == 0, result.output
    assert "960-160@7" in result.stdout and "Ours against" in result.stdout
    assert json.loads(paths[0].read_text())["schema"] == 2 and paths[1].stat().st_size > 1000


def test_bench_of_modules_in_training(tmp_path):
    pytest.importorskip("matplotlib")
    paths = tmp_path / "bench.json", tmp_path / "bench.png"
    options = "--case", "960-160@7", "--batch", "2", *EAGER
    result = invoke("bench", "--train-modules", *options, "--json", str(paths[0]), "--plot", str(paths[1]))
    assert result.exit_code == 0, result.output
    assert "Ghost modules, forward and backward" in result.stdout and paths[1].stat().st_size > 1000
    rows = json.loads(paths[0].read_text())["results"]
    assert {row["baseline"] for row in rows} == {"ghost_ops", "eager", "eager_nchw"}
    assert {(row["kind"], row["status"]) for row in rows} == {("train_module", "ok")}


def test_bench_of_frozen_nets(short_net):
    options = "--rounds", "1", "--quick", "--batch", "1", "--json", "-"
    result = invoke("bench", "--frozen", "--case", "ghostnet_050", "--peers", "eager", *options)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {(row["kind"], row["baseline"]) for row in found["results"]} == {("frozen", "frozen"), ("frozen", "eager")}
    assert found["parts"][-1].keys() == set(PartResult.__dataclass_fields__) and found["parts"][-1]["part"] == "net"
    assert found["settings"]["dtype"] == "float32" and found["settings"]["parts"] == ["frozen"]


@pytest.mark.parametrize(
    "args, message",
    [
        (("--case", "nothing"), "'nothing' is in no name"),
        (("--baselines", "nobody"), "'nobody' is in no name"),
        (("--nets", "--case", "960-160"), "nothing is left to run"),
        (("--batch", "0"), "--batch"),
        (("--threads", "0"), "--threads"),
        (("--dtype", "bfloat16"), "--dtype is for --frozen"),
        (("--frozen", "--dtype", "float16"), "--dtype"),
        (("--frozen", "--dtype", "bfloat16", "--case", "resnet18"), "nothing is left to run"),
    ],
)
def test_bad_options_are_named(args, message):
    result = invoke("bench", "--quick", *args)
    assert result.exit_code == 2 and message in result.output.replace("\n", " ")
