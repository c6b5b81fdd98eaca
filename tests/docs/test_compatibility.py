"""docs/compatibility.md: its table of operators is that of the registries, and the tests that it names are there."""

import re

from ghost_ops.backends import native
from ghost_ops.backends.registry import SCHEMAS

from .test_site import DOCS, load

compatibility = load(DOCS / "site" / "compatibility.py")
TEXT = compatibility.PAGE.read_text()


def test_the_table_is_that_of_the_registries():
    assert compatibility.page(TEXT) == TEXT, "run python docs/site/compatibility.py"
    assert all(f"| `{name}` |" in TEXT for name in SCHEMAS)


def test_what_is_registered_for_the_cpu_is_what_the_backend_says():
    found = {name for name in SCHEMAS if f"| `{name}` | –" not in TEXT}
    assert found == {name for name in SCHEMAS if native.BACKEND.has(name)}


def test_the_tests_that_are_named_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)
    assert len(named) > 20
    missing = []
    for path, function in named:
        file = DOCS.parent / path
        if not file.exists() or (function and not re.search(rf"^def {function}\(", file.read_text(), re.MULTILINE)):
            missing.append((path, function))
    assert not missing
