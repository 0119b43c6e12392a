"""Megatron-core as a trainer backend: models, optimizers and random state behind trainer/base.py."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import get_cuda_rng_tracker, model_parallel_cuda_manual_seed
from torch import Tensor
from torch.nn import Parameter

from hybridrl.config.training import LoraConfig, MoEConfig, OptimizerConfig
from hybridrl.errors import ResourceError
from hybridrl.hosts import cpu, cuda
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.base import Layout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.trainers import TrainerLayout
from hybridrl.models.spec import without_vocabulary
from hybridrl.trainer.base import Backend, Model, Result
from hybridrl.trainer.join import join, take_device
from hybridrl.trainer.lora import switched_off
from hybridrl.trainer.megatron import lora, schedule
from hybridrl.trainer.megatron.architecture import FP8_TOKENS, transformer_config
from hybridrl.trainer.megatron.context import from_context
from hybridrl.trainer.megatron.model import Stage, build, chunks, named_parameters, policy_model
from hybridrl.trainer.megatron.optimizer import Optimizer
from hybridrl.trainer.megatron.router import Router
from hybridrl.trainer.megatron.same_host import share_buckets
from hybridrl.trainer.mesh import Mesh
from hybridrl.trainer.offload import Offload
from hybridrl.trainer.places import Microbatch, TokenPartition
from hybridrl.trainer.routing import Routing
from hybridrl.trainer.setup import RankSetup, make_layout


class MegatronModel(Model):
    def __init__(
        self,
        stage: Stage,
        layout: TrainerLayout,
        rank: int,
        partition: TokenPartition,
        adapters: AdapterLayout | None,
        *,
        tower_lr: float | None = None,
    ) -> None:
        """
        Args:
            partition: how idle microbatches are packed.
            tower_lr: as in Optimizer.
        """
        self._tower_lr = tower_lr
        self.stage, self.layout, self.rank, self.adapters = stage, layout, rank, adapters
        self._inner, self._partition = policy_model(stage), partition

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        return named_parameters(self.stage)

    def weights(self) -> Mapping[str, Tensor]:
        return lora.Merged(self.tensors(), self.stage) if self.adapters else self.tensors()

    def without_adapters(self) -> AbstractContextManager[None]:
        return switched_off(lora.adapters(self.stage))

    def evaluate(
        self, microbatches: Sequence[Microbatch], visit: Callable[[Microbatch, Tensor], None]
    ) -> None:
        def finish(microbatch: Microbatch, hidden_O1: Tensor, non_loss_data: bool) -> None:
            if microbatch.num_seqs:
                visit(microbatch, hidden_O1)

        if filled := schedule.filled(self.stage, microbatches, self._partition):
            with torch.no_grad():
                schedule.run(self.stage, filled, finish, forward_only=True, collect_non_loss_data=True)

    def accumulate_gradients(
        self,
        microbatches: Sequence[Microbatch],
        loss: Callable[[Microbatch, Tensor], tuple[Tensor, Result]],
    ) -> list[Result]:
        def finish(microbatch: Microbatch, hidden_O1: Tensor) -> tuple[Tensor, Tensor, Result | None]:
            if not microbatch.num_seqs:
                return self._inner.no_loss(hidden_O1), schedule.NO_COUNT, None
            scalar, result = loss(microbatch, hidden_O1)
            return scalar, schedule.NO_COUNT, result

        least = int(self.stage[0].ddp_config.overlap_grad_reduce)  # only a backward pass starts the reduction
        if filled := schedule.filled(self.stage, microbatches, self._partition, least):
            results = schedule.run(self.stage, filled, finish, forward_only=False)
            return [result for result in results if result is not None]
        schedule.sum_gradients(self.stage)
        return []

    def score(self, microbatch: Microbatch, hidden_O1: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        return self._inner.score(microbatch, hidden_O1, temperature)

    def head_logp(
        self, microbatch: Microbatch, hidden_O1: Tensor, logp_P: Tensor, head_PK: Tensor, temperature: float
    ) -> Tensor:
        return self._inner.head_logp(microbatch, hidden_O1, logp_P, head_PK, temperature)

    def likeliest(self, microbatch: Microbatch, hidden_O1: Tensor, count: int) -> Tensor:
        return self._inner.likeliest(microbatch, hidden_O1, count)

    def values(self, microbatch: Microbatch, hidden_O1: Tensor) -> Tensor:
        return from_context(microbatch, self._inner.values(hidden_O1))

    def whole_gradients(self) -> dict[str, Tensor]:
        return schedule.whole_gradients(self.stage)

    def gradient_buffers(self) -> Iterator[Tensor]:
        return schedule.gradient_buffers(self.stage)

    def optimizer(self, config: OptimizerConfig, num_steps: int) -> Optimizer:
        return Optimizer(config, self.stage, num_steps, tower_lr=self._tower_lr)

    def routing(self, config: MoEConfig) -> Routing:
        modules = (module for chunk in chunks(self.stage) for module in chunk.modules())
        routers = [module for module in modules if isinstance(module, Router)]
        group = parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
        return Routing(config, routers, self.layout.spec, group)


class MegatronBackend(Backend):
    layout: MegatronLayout

    def __init__(self, setup: RankSetup, device: torch.device) -> None:
        """The process groups must be initialised already, see `start`."""
        self.setup, self.device = setup, device
        self.layout = cast(MegatronLayout, make_layout(setup))
        self.mesh = Mesh(
            parallel_state.get_data_parallel_group(), parallel_state.get_pipeline_model_parallel_group()
        )
        with self.scope():
            config = self._config = transformer_config(setup, device)
        self.partition = TokenPartition(
            rank=parallel_state.get_context_parallel_rank(),
            size=parallel_state.get_context_parallel_world_size(),
            tp=parallel_state.get_tensor_model_parallel_world_size(),
            multiple=FP8_TOKENS[config.fp8_recipe] if config.fp8 else 1,  # pyright: ignore[reportArgumentType]
        )

    def scope(self) -> AbstractContextManager[object]:
        return cpu.scope()

    def sharing(self, setup: RankSetup) -> "MegatronBackend":
        return MegatronBackend(setup, self.device)

    def build(
        self, *, value_head: bool = False, trained: bool = True, lora: LoraConfig | None = None
    ) -> MegatronModel:
        setup, layout, adapters = self.setup, self.layout, None
        if lora is not None:
            adapters = AdapterLayout.on(layout, rank=lora.rank, alpha=lora.alpha, targets=lora.targets)
        stage = build(
            self._config,
            setup.model,
            layout.padded_vocab,
            self.device,
            value_head=value_head,
            overlap=setup.actor.overlap and trained,
            adapters=adapters,
            seed=setup.seed,
            vision=setup.actor.vision.mode if trained and setup.pictures else "frozen",
            banned=setup.banned,
        )
        if not trained:
            Offload((), schedule.gradient_buffers(stage)).leave()  # they never come back
        elif self.device.type == "cpu" and not setup.actor.overlap and setup.actor.offload != "all":
            share_buckets(stage)
        if value_head and layout.spec.head != "value":
            layout = replace(layout, spec=without_vocabulary(layout.spec, head="value"))
        tower_lr = setup.actor.vision.lr
        return MegatronModel(stage, layout, setup.rank, self.partition, adapters, tower_lr=tower_lr)

    def written(self, layout: Layout) -> tuple[set[str], set[str]]:
        return written(layout, self.setup.rank, self.layout.tp)

    def random_state(self) -> dict[str, Tensor]:
        tracked = get_cuda_rng_tracker().get_states().items()
        states = {f"tracker/{name}": state.to("cpu", copy=True) for name, state in tracked}
        return {"torch": torch.get_rng_state(), **states}

    def set_random_state(self, states: Mapping[str, Tensor]) -> None:
        torch.set_rng_state(states["torch"])
        tracked = {name.removeprefix("tracker/"): s for name, s in states.items() if name != "torch"}
        get_cuda_rng_tracker().set_states(tracked)

    def reseed(self, digest: bytes) -> None:
        torch.manual_seed(int.from_bytes(digest[:4]))
        model_parallel_cuda_manual_seed(int.from_bytes(digest[4:7]), force_reset_rng=True)

    def close(self) -> None:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def open(setup: RankSetup) -> MegatronBackend:
    """Same contract as trainer/base.open."""
    if setup.host == "cpu":
        warnings.filterwarnings("ignore", module="megatron")  # its warnings are about missing GPU libraries
    with cpu.scope():
        return MegatronBackend(setup, start(setup))


def start(setup: RankSetup) -> torch.device:
    """Join the process groups and seed the random numbers; returns the device of this rank. *Collective*.

    Raises:
        ResourceError: the device of the setup does not exist or lacks the requested FP8 recipe, or the setup
            names no device although torch sees one.
    """
    device = _device(setup)
    parallel = setup.parallel
    join(setup, device)
    # Megatron's annotation says int, and makes a timedelta of it; whole minutes would be too coarse.
    timeout: dict[str, Any] = {"distributed_timeout_minutes": setup.timeout_s / 60}
    parallel_state.initialize_model_parallel(
        parallel.tp,
        parallel.pp,
        parallel.vpp if parallel.vpp > 1 else None,
        context_parallel_size=parallel.cp,
        expert_model_parallel_size=parallel.ep,
        expert_tensor_parallel_size=parallel.etp,
        **timeout,
    )
    torch.manual_seed(setup.seed)
    model_parallel_cuda_manual_seed(setup.seed)
    return device


def _device(setup: RankSetup) -> torch.device:
    if setup.device is None and setup.actor.fp8 != "none":
        raise ResourceError(
            f"actor.fp8 = {setup.actor.fp8} needs GPUs, this trainer rank computes on the CPU",
            where="actor.fp8",
            fix="remove actor.fp8, or set cluster.gpus_per_node",
        )
    device = take_device(setup)
    if setup.device is not None:
        cuda.refuse_fp8(setup.actor.fp8, device)
    return device


def written(layout: Layout, rank: int, tp: int) -> tuple[set[str], set[str]]:
    """Same contract as Backend.written.

    Tensor-parallel ranks that hold a copy of the same tensor have the same flat ranges: the first rank writes
    them. The optimizer state of a trained tensor is sharded over data-parallel ranks, that of an expert over
    all ranks that hold this expert: each of them writes its own range. Tensors that are not trained are whole
    on every rank that holds them, and the first such rank writes them.
    """
    first: dict[tuple[object, ...], str] = {}
    trained, untrained = set(), set()
    for held in layout.holdings:
        tied_copy = first.setdefault((held.param, held.rows, held.cols), held.tensor) != held.tensor
        if rank not in held.ranks or tied_copy:
            continue
        names = {name for layer in held.layers for name, _ in held.shards(layer)}
        on_every_rank = held.ranks.step == 1 and not held.expert_rows
        if not on_every_rank or rank % tp == 0:
            trained |= names
        if rank == held.ranks.start:
            untrained |= names
    return trained, untrained
