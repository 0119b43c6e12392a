"""PyTorch FSDP2 behind trainer/base.py: transformers' modules, sharded over all ranks."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from hybridrl.config.training import LoraConfig
from hybridrl.layout.base import Layout
from hybridrl.models.spec import without_vocabulary
from hybridrl.trainer.base import Backend
from hybridrl.trainer.fsdp import network
from hybridrl.trainer.fsdp.model import FSDPModel
from hybridrl.trainer.join import join, precision, take_device
from hybridrl.trainer.mesh import Mesh
from hybridrl.trainer.packing import TokenPartition
from hybridrl.trainer.setup import RankSetup, make_layout


class FSDPBackend(Backend):
    def __init__(self, setup: RankSetup, device: torch.device, alone: dist.ProcessGroup) -> None:
        """On ranks that have joined each other.

        Args:
            alone: a group of this rank only.
        """
        self.setup, self.device, self._alone = setup, device, alone
        self.layout = make_layout(setup)
        assert dist.group.WORLD is not None, "the ranks have joined each other"
        self.mesh, self.partition = Mesh(dist.group.WORLD), TokenPartition()

    def scope(self) -> AbstractContextManager[object]:
        return nullcontext()

    def sharing(self, setup: RankSetup) -> "FSDPBackend":
        return FSDPBackend(setup, self.device, self._alone)

    def build(
        self, *, value_head: bool = False, trained: bool = True, lora: LoraConfig | None = None
    ) -> FSDPModel:
        assert lora is None, "the layout refuses it"
        setup, layout = self.setup, self.layout
        made = network.build(
            setup.model_folder,
            self.device,
            precision(setup.actor, self.device),
            tied=setup.model.tied,
            value_head=value_head,
            trained=trained,
            recompute=setup.actor.recompute == "full",
        )
        if value_head and layout.spec.head != "value":
            layout = replace(layout, spec=without_vocabulary(layout.spec, head="value"))
        return FSDPModel(made, layout, setup.rank, self._alone)

    def written(self, layout: Layout) -> tuple[set[str], set[str]]:
        held = set(layout.shards(self.setup.rank))  # no two ranks hold the same
        return held, held

    def random_state(self) -> dict[str, Tensor]:
        states = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def set_random_state(self, states: Mapping[str, Tensor]) -> None:
        torch.set_rng_state(states["torch"])
        if self.device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self.device)

    def reseed(self, digest: bytes) -> None:
        torch.manual_seed(int.from_bytes(digest[:4]))

    def close(self) -> None:
        dist.destroy_process_group()


def open(setup: RankSetup) -> FSDPBackend:
    """As trainer/base.open."""
    make_layout(setup)  # refusals come before the ranks wait for each other
    device = take_device(setup, transformer_engine=False)
    join(setup, device)
    torch.manual_seed(setup.seed)
    alone, _ = cast(Any, dist.new_subgroups(1))
    return FSDPBackend(setup, device, alone)
