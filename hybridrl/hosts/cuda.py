"""The machine with CUDA: one device per rank."""

import torch


def bind(rank: int) -> torch.device:
    """Make this process use one GPU of its machine: the one that Ray showed it, or the rank's own among all.

    Args:
        rank: of the process in its group; consecutive ranks share a machine.
    """
    device = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
