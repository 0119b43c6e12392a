"""What a rule is: a function that yields an error for each mistake it finds in a config and never raises.

An error names both keys and both values; its place is the key that is easiest to change.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridrl.config.load import LoadedConfig
from hybridrl.errors import HybridRLError
from hybridrl.models import spec as models


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleContext:
    """What rules need to know besides the config."""

    here: bool = True
    """Whether the run would use this machine. If not, rules about devices check nothing."""

    alone: bool = False
    """Whether the launcher has this machine only."""

    fills_gpus: bool = True
    """Whether ranks and engines, as configured, have to fill the GPUs of the config."""

    num_gpus: int
    """GPUs of this machine."""

    gpu: str | None = None
    """Kind of these GPUs, named as in cluster.gpu; None: not known, or there are none."""

    spec: models.ModelSpec | None
    """The policy's model. None: its folder is not there, which another rule reports."""

    unreadable: bool = False
    """Whether the model is here but cannot be described, which was reported already."""


Rule = Callable[[LoadedConfig[Any], RuleContext], Iterator[HybridRLError]]


def model_name(loaded: LoadedConfig[Any]) -> str:
    """The name of the policy's model in messages."""
    return Path(loaded.config.model.path).name


def one_of(numbers: Sequence[int]) -> str:
    """Numbers as a message lists them: "2, 4 or 8"."""
    *head, last = map(str, numbers)
    return f"{', '.join(head)} or {last}" if head else last
