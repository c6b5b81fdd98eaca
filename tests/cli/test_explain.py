import copy

import pytest

from ghost_ops import explain, freeze, fuse
from ghost_ops.cli.targets import example_of, make_net

from .command import error_of, found_by, invoke

SMALL = "tests.cli.nets:small"


def test_the_reports_before_and_after():
    found = found_by("explain", SMALL, "--size", "32x48", "--batch", "2", "--json")
    assert (found["class"], found["input"]) == ("Sequential", "float32 2 x 3 x 32 x 48")
    net = make_net(SMALL)
    x = example_of(net, 2, (32, 48)).args[0]
    for way, made in (("plain", net), ("fused", fuse(copy.deepcopy(net))), ("frozen", freeze(net))):
        assert [(row["name"], row["runs"], row["why"]) for row in found[way]["rows"]] == [
            (row.name, row.runs, row.why) for row in explain(made, x).rows
        ]
        assert found[way]["notes"] == []
    assert found["fused"]["tally"] == "1 of 1 Ghost modules"


def test_the_tables():
    result = invoke("explain", SMALL, "--size", "32")
    assert result.exit_code == 0
    for words in ("As it is: Sequential", "After ghost_ops.fuse", "After ghost_ops.freeze", "it could be fused"):
        assert words in result.stdout


def test_bfloat16():
    found = found_by("explain", SMALL, "--size", "32", "--dtype", "bfloat16", "--json")
    assert {row["input"] for row in found["frozen"]["rows"] if row["input"]} == {"1 x 3 x 32 x 32 bfloat16"}


def test_what_fuse_and_freeze_warn_of_is_said():
    found = found_by("explain", "tests.cli.nets:plain_linear", "--size", "8", "--json")
    assert found["frozen"]["rows"] == [] and "nothing of this" in found["frozen"]["notes"][0]
    assert "no Ghost module was found" in found["fused"]["notes"][0]


def test_no_colour_where_none_is_wanted(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in invoke("explain", SMALL, "--size", "32").output


@pytest.mark.parametrize("command", ["explain", "profile"])
def test_an_image_that_the_net_does_not_take(command):
    message = error_of(command, "tests.cli.nets:fixed", "--size", "32")
    assert message.startswith("the net does not take float32 1 x 3 x 32 x 32; is --size right?: RuntimeError: ")
