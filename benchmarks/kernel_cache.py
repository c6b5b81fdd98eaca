"""Triton's cache as one file, to be carried to another machine and used at any path there."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

LEFT_OUT = (".ttir", ".ttgir", ".llir", ".source", ".ptx", ".amdgcn")  # what a launch does not need
GROUP = "__grp__*.json"  # lists the files of a kernel by their absolute paths


def pack(cache: Path, archive: Path) -> None:
    """Write what launches need of a cache into an archive (.tar.xz, .tar.gz, .tar)."""
    kinds = {".xz": "w:xz", ".gz": "w:gz", ".tar": "w"}
    if archive.suffix not in kinds:
        raise ValueError(f"kernel_cache.pack: archive: expected a name in {', '.join(kinds)}, got {archive.name}")
    with tarfile.open(archive, kinds[archive.suffix]) as file:
        for path in sorted(cache.rglob("*")):
            if path.is_file() and path.suffix not in LEFT_OUT:
                file.add(path, str(path.relative_to(cache)))


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive of ``pack`` into a folder, which then is a cache of Triton's."""
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    relocate(folder)


def relocate(cache: Path) -> None:
    """Let the lists of files in a cache name the places where the files are now."""
    for path in cache.glob(f"*/{GROUP}"):
        said = json.loads(path.read_text())
        here = {name: str(path.parent / Path(at).name) for name, at in said["child_paths"].items()}
        if here != said["child_paths"]:
            path.write_text(json.dumps(said | {"child_paths": here}))
