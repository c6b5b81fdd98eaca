"""What ``info`` shows and ``verify --report`` writes of the machine: pairs of a name and a text."""

from __future__ import annotations

from typing import Any

from ..bench import machine, surroundings


def describe() -> dict[str, Any]:
    """The machine and all around it, ready for JSON."""
    return {**machine.describe(), **surroundings.describe()}


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The same for people, from what ``describe`` has returned."""
    build, threads, host, torch = (found[name] for name in ("build", "threads", "host", "torch"))
    caches = ", ".join(f"{name} {size >> 10} KiB" for name, size in found["caches"].items())
    rows = [
        ("ghost_ops", found["ghost_ops"] + (f", commit {found['commit']}" if found["commit"] else "")),
        ("processor", f"{found['cpu']} ({found['architecture']}), {found['cores']} cores"),
        ("caches", caches),
        ("system", f"{host['kernel']}, {host['libc']}" + _memory(host)),
        ("kernels", f"{found['isa']} (of {', '.join(found['isas']) or 'none'})"),
        ("build", _build(build)),
    ]
    rows += [(f"backend {name}", state) for name, state in found["backends"].items()]
    limit = f", limited to {threads['cpu_limit']} processors" if "cpu_limit" in threads else ""
    used = f"{threads['intra_op']} and {threads['inter_op']} between operators"
    rows.append(("threads", f"{used}{limit}, {threads['library']}"))
    rows += [(name, value) for name, value in found["environment"].items()]
    built = ", ".join(f"{name} {torch[name]}" for name in ("cuda", "hip") if torch[name]) or "for CPUs only"
    rows.append(("PyTorch's build", f"{torch['git']}, {built}, CPU capability {torch['cpu_capability']}"))
    rows.append(("GPU driver", found["gpus"]["driver"] or "none"))
    rows += [
        (f"GPU {i}", f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['memory_mib']} MiB, "
                     f"{gpu['multiprocessors']} multiprocessors")
        for i, gpu in enumerate(found["gpus"]["devices"])
    ]  # fmt: skip
    rows += [(name, version or f"not installed{_how(name)}") for name, version in found["versions"].items()]
    return rows


def _memory(host: dict[str, Any]) -> str:
    found = f", {host['memory_mib']} MiB of memory" if "memory_mib" in host else ""
    return found + (f", limited to {host['memory_limit_mib']} MiB" if "memory_limit_mib" in host else "")


def _build(build: dict[str, Any]) -> str:
    if not build:
        return "no compiled library"
    loaded = "" if build["loaded"] else ", not loaded"
    return f"{build['library']} {build['sha256']} ({build['bytes']} bytes), {build['compiler']}{loaded}"


def _how(package: str) -> str:
    return ': pip install "ghost-ops[bench]"' if package in machine.ENGINES else ""
