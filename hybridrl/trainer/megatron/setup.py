"""Process groups, and who holds which part of the model."""

from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from hybridrl.errors import ResourceError
from hybridrl.hosts import cpu
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.trainer.setup import (
    TrainerSetup,
    megatron_layout,
    refuse_unbuildable,
    refuse_unfit_experts,
)


def start(setup: TrainerSetup) -> torch.device:
    """Join the process groups and seed. *Collective*. Returns the device of this rank.

    Raises:
        ResourceError: torch would use a GPU.
    """
    if torch.cuda.is_available():
        raise ResourceError(
            "the trainer has no Transformer Engine layers and no NCCL groups yet, and torch sees a GPU",
            fix="an empty CUDA_VISIBLE_DEVICES trains on the CPU",
        )
    address = {"init_method": setup.rendezvous, "rank": setup.rank, "world_size": setup.parallel.num_ranks}
    dist.init_process_group("gloo", timeout=timedelta(seconds=setup.timeout_s), **address)
    parallel = setup.parallel
    parallel_state.initialize_model_parallel(
        parallel.tp,
        parallel.pp,
        parallel.vpp if parallel.vpp > 1 else None,
        context_parallel_size=parallel.cp,
        expert_model_parallel_size=parallel.ep,
        expert_tensor_parallel_size=parallel.etp,
    )
    torch.manual_seed(setup.seed)
    tensor_parallel.model_parallel_cuda_manual_seed(setup.seed)
    return cpu.CPU


def leave() -> None:
    """Leave the process groups, so that `start` can be called again in this process."""
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def make_layout(setup: TrainerSetup) -> MegatronLayout:
    """Who holds which part of the model.

    Raises:
        LayoutError: the model does not divide over the ranks.
        ModelError: it has a part that our layers lack.
        ConfigError: the config speaks of experts, of which it has none.
    """
    refuse_unbuildable(setup.model, where=str(setup.model_folder))
    refuse_unfit_experts(setup.actor.moe, setup.model, where=str(setup.model_folder))
    return megatron_layout(setup.model, setup.parallel)
