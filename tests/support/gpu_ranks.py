"""What trainer ranks do on GPUs, each with a device of its own, in the order of ranks."""

from pathlib import Path
from typing import Any

import trainer_scenarios as scenarios


def train(
    rank: int, rendezvous: scenarios.Rendezvous, folders: list[Path], *args: Any, **changes: Any
) -> Any:
    return scenarios.train(rank, rendezvous, folders, *args, device=rank, **changes)


def train_twice(rank: int, rendezvous: scenarios.Rendezvous, folder: Path, *args: Any, **changes: Any) -> Any:
    """The same run two times."""
    return train(rank, rendezvous, [folder, folder], *args, deterministic=True, **changes)
