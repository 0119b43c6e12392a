"""PyTorch FSDP2 behind trainer/base.py: transformers' modules, sharded over all ranks."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from hybridrl.config.training import LoraConfig
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.base import Layout
from hybridrl.layout.fsdp import FSDPLayout, exchange_of
from hybridrl.models.spec import without_vocabulary
from hybridrl.trainer.base import Backend
from hybridrl.trainer.fsdp import groups, network
from hybridrl.trainer.fsdp.attention import Context
from hybridrl.trainer.fsdp.groups import Groups
from hybridrl.trainer.fsdp.model import FSDPModel
from hybridrl.trainer.join import join, precision, take_device
from hybridrl.trainer.mesh import Mesh
from hybridrl.trainer.places import TokenPartition
from hybridrl.trainer.setup import RankSetup, make_layout


class FSDPBackend(Backend):
    layout: FSDPLayout

    def __init__(self, setup: RankSetup, device: torch.device, groups: Groups) -> None:
        """On ranks that have joined each other."""
        self.setup, self.device, self._groups = setup, device, groups
        self.layout = cast(FSDPLayout, make_layout(setup))
        self.mesh = Mesh(groups.dp)
        self.partition = TokenPartition(rank=groups.cp.rank(), size=groups.cp.size())

    def scope(self) -> AbstractContextManager[object]:
        return nullcontext()

    def sharing(self, setup: RankSetup) -> "FSDPBackend":
        return FSDPBackend(setup, self.device, self._groups)

    def build(
        self, *, value_head: bool = False, trained: bool = True, lora: LoraConfig | None = None
    ) -> FSDPModel:
        setup, layout, adapters = self.setup, self.layout, None
        if lora is not None:
            adapters = AdapterLayout.on(layout, rank=lora.rank, alpha=lora.alpha, targets=lora.targets)
        if value_head and layout.spec.head != "value":
            layout = replace(layout, spec=without_vocabulary(layout.spec, head="value"))
        plan = network.Plan(
            folder=setup.model_folder,
            layout=layout,
            adapters=adapters,
            value_head=value_head,
            trained=trained,
            recompute=setup.actor.recompute == "full",
            gathers_once=setup.actor.gather == "once",
            on_host=setup.actor.keep_on_host == "all",
            compute_dtype=precision(setup.actor, self.device),
            context=Context(self._groups.cp, exchange_of(setup.model, setup.parallel)),
            tower=setup.actor.vision.mode if setup.pictures else "frozen",
        )
        return FSDPModel(
            network.build(plan, self._groups, self.device),
            layout,
            setup.rank,
            groups=self._groups,
            partition=self.partition,
            shardings=plan.shardings,
            adapters=adapters,
            gathers_once=plan.gathers_once,
            keep_on_host=setup.actor.keep_on_host,
            device=self.device,
            seed=setup.seed,
            banned=setup.banned,
            tower_lr=setup.actor.vision.lr,
        )

    def written(self, layout: Layout) -> tuple[set[str], set[str]]:
        held = set(written(layout, self.setup.rank))
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
    layout = cast(FSDPLayout, make_layout(setup))  # refusals come before the ranks wait for each other
    device = take_device(setup, transformer_engine=False)
    join(setup, device)
    torch.manual_seed(setup.seed)
    return FSDPBackend(setup, device, groups.make(layout, device, timedelta(seconds=setup.timeout_s)))


def written(layout: Layout, rank: int) -> Iterator[str]:
    """Names of the tensors that a rank writes: of the ranks with equal shards, the first one does."""
    first: dict[tuple[object, ...], int] = {}
    for held in layout.holdings:
        key = (held.param, held.rows, held.cols, held.experts)
        first[key] = min(first.get(key, held.ranks.start), held.ranks.start)
    for held in layout.holdings:
        if rank in held.ranks and first[held.param, held.rows, held.cols, held.experts] == rank:
            yield from (name for layer in held.layers for name, _ in held.shards(layer))
