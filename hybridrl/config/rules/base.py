"""What a rule about a config is: a function that yields an error for each mistake it finds and never raises.

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
    """Whether the run would use this machine. Without, rules about devices have nothing to say."""

    alone: bool = False
    """Whether what starts the run has this machine only."""

    fills_gpus: bool = True
    """Whether ranks and engines have to fill the GPUs of the config as they are."""

    num_gpus: int
    """Of this machine."""

    gpu: str | None = None
    """What these are, named as in cluster.gpu; None: not known, or there are none."""

    spec: models.ModelSpec | None
    """None: the model folder is not there, and another rule says so."""

    unreadable: bool = False
    """What is here of the model is no known one, which is said already."""


Rule = Callable[[LoadedConfig[Any], RuleContext], Iterator[HybridRLError]]


def model_name(loaded: LoadedConfig[Any]) -> str:
    """The policy's model as messages call it."""
    return Path(loaded.config.model.path).name


def one_of(numbers: Sequence[int]) -> str:
    """Numbers as a message lists them: "2, 4 or 8"."""
    *head, last = map(str, numbers)
    return f"{', '.join(head)} or {last}" if head else last
