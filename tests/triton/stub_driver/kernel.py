"""A kernel that notes how it is started, by Triton's launcher or by C++."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import torch
from triton.backends.nvidia.driver import CudaLauncher

from ghost_ops.backends.triton import launch, launch_cache
from tests.triton.stub_driver import STREAM, Driver


class Launcher(CudaLauncher):
    """Stands for Triton's; ``kernel.run`` gets its arguments."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __call__(self, x, y, z, stream, function, metadata, *rest):
        self.kernel.run((x, y, z), stream, function, metadata, *rest)


class Kernel:
    """Stands for a JITFunction; ``started`` has, of full runs and of replays, grids and arguments by name."""

    driver: Driver | None = None  # where C++ replays

    def __init__(self, *names: str, **metadata: object):
        self.metadata = metadata  # in the place of what Triton says of a compiled kernel
        self.arg_names, self.full, self.kept = list(names), 0, []
        self._started, self.compiled = [], {}

    def __getitem__(self, grid):
        def start(num_warps, num_stages, **arguments):
            self.full += 1
            self._started.append((grid, arguments))
            self.kept.append(arguments)
            return self.compile({name: arguments[name] for name in self.arg_names if name in arguments})

        return start

    def compile(self, arguments):
        signature = {name: self.type_of(name, value) for name, value in arguments.items()}
        function = 5 if self.driver is None else self.driver.function(self, signature)
        constants = {n: v for n, v in arguments.items() if signature[n] == "constexpr"}
        self.compiled[function] = signature, constants
        metadata = SimpleNamespace(
            name="some_kernel", num_warps=4, num_ctas=1, shared=96, launch_cooperative_grid=False, launch_pdl=False,
            global_scratch_size=0, profile_scratch_size=0,
        )  # fmt: skip
        metadata.__dict__.update(self.metadata)
        return SimpleNamespace(
            function=function, packed_metadata=(4, 1, 96), run=Launcher(self), metadata=metadata,
            src=SimpleNamespace(signature=signature),
        )  # fmt: skip

    @staticmethod
    def type_of(name, value):
        if isinstance(value, torch.Tensor):
            return "*fp32"
        return "constexpr" if name.isupper() else {bool: "i1", int: "i64", float: "fp64"}.get(type(value), "constexpr")

    def run(self, grid, stream, function, metadata, *rest):
        assert (stream, metadata, rest[:3]) == (STREAM, (4, 1, 96), (None, None, None))
        assert function in self.compiled
        self._started.append((grid, dict(zip(self.arg_names, rest[3:], strict=True))))

    def note(self, launch_):
        """What C++ has started."""
        assert (launch_.stream, [*launch_.block], launch_.shared) == (STREAM, [128, 1, 1], 96)
        self.attributes = launch_.attribute_count, launch_.attribute, launch_.attribute_value
        signature, constants = self.compiled[launch_.function]
        *values, scratch, profile = launch_.parameters()
        assert scratch == profile == 0
        names = [name for name in signature if name not in constants]
        found = {n: number(signature[n], value) for n, value in zip(names, values, strict=True)} | constants
        self._started.append((tuple(launch_.grid), {name: found[name] for name in self.arg_names}))

    @property
    def started(self):
        """What Python has started, and then what C++ has since the last time."""
        for launch_ in self.driver.launches() if self.driver else ():
            self.driver.functions[launch_.function][0].note(launch_)
        return self._started


def number(kind, bits):
    """A kernel's parameter as Python has it."""
    data = bits.to_bytes(8, "little")
    if kind == "fp64":
        return struct.unpack("<d", data)[0]
    return bool(bits) if kind == "i1" else bits if kind[0] == "*" else int.from_bytes(data, "little", signed=True)


def copy_with(kernel):
    """An operator of one launch."""

    @launch_cache.cached_launches
    def copy(x, n=1):
        out = launch.new_map(x, x.shape[1])
        launch.start_kernel(kernel, (n,), {"x": x, "out": out}, 4, 2)
        return out

    return copy
