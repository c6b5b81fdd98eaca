"""docs/messages.md has every message of the source, under a cure: a new one needs a place there."""

import pytest

from .test_site import DOCS, load

messages = load(DOCS / "site" / "messages.py")
FOUND = messages.messages()
TEXT = messages.PAGE.read_text()


def test_every_message_is_on_the_page_and_no_other():
    made, left = messages.page(TEXT, FOUND)
    assert not [f"{message.file}: {message.text}" for message in left]
    assert made == TEXT, "run python docs/site/messages.py"


@pytest.mark.parametrize(
    "text",
    [
        "fuse: net: expected a torch.nn.Module, got …",  # raised
        "freeze: nothing of this … was frozen: …",  # warned of
        "ghost_ops: results are right, but calls are slow, since …",
        "no Ghost module was found in this … that can run fused;",  # in a variable
        "a TorchFunctionMode is active",  # returned as a reason
        "its forward branches on the size of a tensor",  # an objection
        "its forward hooks a tensor (…)",  # a constant of the file, in a table
        "it carries hooks, or a forward of its own: these must run",
        "unknown model …: …",  # of the command line
        "ghost_ops: GHOST_OPS_NATIVE=1, and the kernels cannot be built: …",  # of the build
        "ghost_ops.program: steps: expected a list that ghost_ops wrote: a kernel of even size",  # of C++
        "ghost_ops: the kernel … was not started: …",
    ],
)
def test_each_kind_of_message_is_found(text):
    found = [message.text for message in FOUND]
    assert any(text == one or (text.endswith("…") and one.startswith(text[:-1])) for one in found), text


def test_what_a_new_source_says_is_found():
    python = 'if x:\n    raise ValueError(f"f: x: {x} is of no use")\nwarnings.warn("too " + "little of it")\n'
    assert [message.text for message in messages.of_python(python, "f.py")] == [
        "f: x: … is of no use",
        "too little of it",
    ]
    cpp = 'void f() { if (!x) fail("a (round) map is " + std::to_string(x) + " pixels"); }'
    assert [message.text for message in messages.of_cpp(cpp, "f.cpp")] == ["ghost_ops: a (round) map is … pixels"]


def test_a_message_without_a_place_is_named():
    new = messages.Message("nobody has said this before", "ValueError", "ghost_ops/new.py")
    assert messages.page(TEXT, [*FOUND, new])[1] == [new]


def test_a_message_that_has_gone_makes_the_page_stale():
    made, _ = messages.page(TEXT, [message for message in FOUND if message.text != "a TorchFunctionMode is active"])
    assert made != TEXT


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"no message of its section matches \['TorchFunctionMode no longer'\]"):
        messages.page("<!-- messages:\nTorchFunctionMode no longer\n-->\n", FOUND)
