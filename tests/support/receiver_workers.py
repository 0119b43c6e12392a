"""Trainer ranks and receivers in processes of their own, over gloo: the product's swap ranks without Ray."""

import asyncio
import os
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from swap_workers import ProcessGroup, Writer

from hybridrl.errors import WorkerError
from hybridrl.workers.swap_rank import Receiver, SwapRank

_TIMEOUT_S = 30.0


class SwapTrainer(Writer):
    """A trainer rank, in a default group that only the trainer's ranks are in."""

    def __init__(self, layout, rank, first, store):
        super().__init__(layout, rank, first)
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        timeout = timedelta(seconds=_TIMEOUT_S)
        dist.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=layout.world_size, timeout=timeout
        )
        self._swap = SwapRank(layout, torch.device("cpu"), _TIMEOUT_S)

    def connect(self, engines, lost, topology, waves, rendezvous):
        return self._swap.connect(self.rank, engines, lost, topology, waves, frozenset(), rendezvous)

    def fixed_parameters(self):
        return frozenset()

    def plan_fields(self):
        return self._swap.plan_fields()

    def write_weights(self, wave, whole):
        return self._swap.write(wave, self.tensors, whole=whole)


class SwapReceiver(Receiver):
    """A receiver that ends in its first write if a file says so."""

    def __init__(self, setup, dies_at_write):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        super().__init__(setup)
        self._dies_at_write = dies_at_write

    def pid(self):
        return os.getpid()

    def write_weights(self, wave, whole):
        if self._dies_at_write.exists():
            self._dies_at_write.unlink()
            os._exit(1)
        return super().write_weights(wave, whole)


class Renewable(ProcessGroup):
    """Processes that can be started again, as the workers of a run."""

    fails_to_start = False

    async def renew(self, rank, *, timeout_s):
        if self.fails_to_start:
            raise WorkerError("no room on that node")
        await asyncio.to_thread(super().renew, rank)


def new_store() -> str:
    return f"file://{tempfile.mkdtemp()}/store"


def flag() -> Path:
    """A file that is not there yet."""
    return Path(tempfile.mkdtemp()) / "flag"
