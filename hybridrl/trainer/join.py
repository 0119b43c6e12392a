"""How a trainer rank starts, whatever its backend: its device, its dtype and its process group."""

from datetime import timedelta

import torch
import torch.distributed as dist

from hybridrl.config.training import ActorConfig
from hybridrl.errors import ResourceError
from hybridrl.hosts import cuda, matmul
from hybridrl.trainer.setup import RankSetup


def precision(actor: ActorConfig, device: torch.device) -> torch.dtype:
    """Dtype of parameters and activations: actor.precision, by default bf16 on GPUs and fp32 on the CPU."""
    name = actor.precision or ("bf16" if device.type == "cuda" else "fp32")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def take_device(setup: RankSetup, *, transformer_engine: bool = True) -> torch.device:
    """The device of this rank, as the current one, with deterministic algorithms if the setup asks for them.

    Args:
        transformer_engine: whether layers on a GPU are made of its modules.

    Raises:
        ResourceError: the device of the setup does not exist or lacks Transformer Engine, or the setup names
            no device although torch sees one.
    """
    if setup.deterministic and setup.host == "cuda":
        cuda.make_deterministic()
    torch.use_deterministic_algorithms(setup.deterministic)
    if setup.device is not None:
        return cuda.take(setup.device, transformer_engine=transformer_engine)
    if torch.cuda.is_available():
        raise ResourceError(
            "this trainer rank computes on the CPU, and torch sees a GPU",
            fix="an empty CUDA_VISIBLE_DEVICES hides it; cluster.gpus_per_node=1 trains on it",
        )
    matmul.install()
    return torch.device("cpu")


def join(setup: RankSetup, device: torch.device) -> None:
    """Make the process group of all ranks of a role. *Collective*."""
    dist.init_process_group(
        cuda.BACKEND if device.type == "cuda" else "gloo",
        timeout=timedelta(seconds=setup.timeout_s),
        init_method=setup.rendezvous,
        rank=setup.rank,
        world_size=setup.parallel.num_ranks,
        device_id=device if device.type == "cuda" else None,
    )
