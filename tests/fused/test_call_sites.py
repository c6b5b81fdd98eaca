"""Where a method calls children one after the other: what is proven, and what is not."""

from __future__ import annotations

import linecache
import sys
import textwrap

import pytest

from ghost_ops.fused.call_sites import call_sites, children_called_at

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python tells no positions of calls before 3.11")
_files = 0


def method(body: str, shown: str | None = None):
    """A method of this body, whose source is shown as that of another body where one is given."""
    global _files
    _files += 1
    name = f"<method {_files}>"
    source, other = (
        f"def forward(self, x):\n{textwrap.indent(textwrap.dedent(b), '    ')}" for b in (body, shown or body)
    )
    linecache.cache[name] = (len(other), None, other.splitlines(keepends=True), name)
    scope: dict[str, object] = {}
    exec(compile(source, name, "exec", dont_inherit=True), scope)
    return scope["forward"]


IN_TURN = "x = self.a(x)\nx = self.b(x)\nx = self.c(x)\nreturn x\n"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (IN_TURN, [("a", "b", "c"), ("b", "c")]),
        ("return self.c(self.b(self.a(x)))\n", [("a", "b", "c")]),
        ("return self.b(self.a(x + 1)) + x\n", [("a", "b")]),
        ("if x.sum() > 0:\n    x = self.a(x)\n    x = self.b(x)\nreturn x\n", [("a", "b")]),
        ("x = self.a(x)\nx = x + 1\nx = self.b(x)\nreturn x\n", []),
        ("z = self.a(x)\ny = self.b(z)\nreturn y + z\n", []),
        ("y = self.a(x)\nx = self.b(x)\nreturn x + y\n", []),
        ("y = x = self.a(x)\nx = self.b(x)\nreturn x + y\n", []),
        ("return self.b((z := self.a(x))) + z\n", []),
        ("return self.b(self.a(x), x)\n", []),
        ("return self.b(input=self.a(x))\n", []),
        ("return self.b(*self.a(x))\n", []),
        ("return [self.b(self.a(y)) for y in x]\n", []),
        ("f = lambda x: self.b(self.a(x))\nreturn f(x)\n", []),
        ("self = self.other\n" + IN_TURN, []),
        ("global y\ny = self.a(x)\ny = self.b(y)\nreturn y\n", []),
        ("other = self.other\nreturn other.b(other.a(x))\n", []),
        ("return self.b.inner(self.a(x))\n", []),
    ],
)
def test_what_is_proven(body, found):
    assert list(call_sites(method(body).__code__).values()) == found


def test_source_that_is_not_the_codes():
    kept = IN_TURN.replace("return x", "return x + 1")
    assert not call_sites(method(kept, shown=IN_TURN).__code__)
    assert not call_sites(compile("lambda self, x: self.b(self.a(x))", "<nowhere>", "eval").co_consts[0])


def test_the_place_of_the_call_counts():
    """A method may call a child at two places, of which one shows the result."""

    class Owner:
        def __init__(self):
            self.seen = []

        def a(self, x):
            self.seen.append(children_called_at(sys._getframe(1)))
            return x

        def b(self, x):
            return x

    owner = Owner()
    method("y = self.a(x)\nx = self.a(x)\nx = self.b(x)\nz = self.b(self.a(x))\nreturn x, y, z\n")(owner, 1)
    assert owner.seen == [(), ("a", "b"), ("a", "b")]
