"""Processes that stand in for machines: started once, joined by gloo for one function at a time."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

SECONDS = 240  # then a collective that some process never joined counts as hung


class Ranks:
    """``world`` child processes. Their rendezvous is a file, so that no two test runs compete for a port."""

    def __init__(self, world: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.processes, self.pipes = [], []
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world, theirs), daemon=True)
            process.start()
            self.processes.append(process)
            self.pipes.append(ours)

    def run(self, function: Callable, *args: object) -> list:
        """What ``function(rank, *args)`` returns in each process, between joining and leaving a group."""
        with tempfile.TemporaryDirectory() as folder:
            for pipe in self.pipes:
                pipe.send((function, args, str(Path(folder, "store"))))
            results = []
            for rank, pipe in enumerate(self.pipes):
                assert pipe.poll(SECONDS), f"process {rank} gave no answer in {SECONDS} s"
                results.append(pipe.recv())
        failed = [f"process {rank}:\n{text}" for rank, (ok, text) in enumerate(results) if not ok]
        assert not failed, "\n".join(failed)
        return [result for _, result in results]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _serve(rank: int, world: int, pipe: multiprocessing.connection.Connection) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    while True:
        try:
            function, args, store = pipe.recv()
        except EOFError:
            return
        try:
            dist.init_process_group(
                "gloo", f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
            )
            torch.manual_seed(0)
            answer = True, function(rank, *args)
        except Exception:
            answer = False, traceback.format_exc()
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        pipe.send(answer)
