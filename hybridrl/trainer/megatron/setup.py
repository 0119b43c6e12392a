"""Process groups, and who holds which part of the model."""

import math
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from hybridrl.errors import ResourceError
from hybridrl.hosts import cpu, cuda
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
        ResourceError: the device of the setup is not there, or lacks the FP8 that is asked for, or torch sees
            one and the setup names none.
    """
    device = _device(setup)
    parallel, timeout = setup.parallel, timedelta(seconds=setup.timeout_s)
    dist.init_process_group(
        cuda.BACKEND if device.type == "cuda" else "gloo",
        timeout=timeout,
        init_method=setup.rendezvous,
        rank=setup.rank,
        world_size=parallel.num_ranks,
        device_id=device if device.type == "cuda" else None,
    )
    parallel_state.initialize_model_parallel(
        parallel.tp,
        parallel.pp,
        parallel.vpp if parallel.vpp > 1 else None,
        context_parallel_size=parallel.cp,
        expert_model_parallel_size=parallel.ep,
        expert_tensor_parallel_size=parallel.etp,
        distributed_timeout_minutes=math.ceil(setup.timeout_s / 60),
    )
    torch.manual_seed(setup.seed)
    tensor_parallel.model_parallel_cuda_manual_seed(setup.seed)
    return device


def _device(setup: TrainerSetup) -> torch.device:
    if setup.deterministic and setup.host == "cuda":
        cuda.make_deterministic()
    torch.use_deterministic_algorithms(setup.deterministic)
    if setup.device is not None:
        device = cuda.take(setup.device)
        cuda.refuse_fp8(setup.actor.fp8, device)
        return device
    if setup.actor.fp8 != "none":
        raise ResourceError(
            f"actor.fp8 = {setup.actor.fp8} needs GPUs, this trainer rank computes on the CPU",
            where="actor.fp8",
            fix="remove actor.fp8, or set cluster.gpus_per_node",
        )
    if torch.cuda.is_available():
        raise ResourceError(
            "this trainer rank computes on the CPU, and torch sees a GPU: Megatron would use it",
            fix="an empty CUDA_VISIBLE_DEVICES hides it; cluster.gpus_per_node=1 trains on it",
        )
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
    return megatron_layout(setup.model, setup.parallel, setup.host)
