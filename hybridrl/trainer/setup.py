"""What a trainer rank is made from. Imports no backend: the controller's process makes these."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.training import ActorConfig, CriticConfig, MoEConfig, TrainParallel
from hybridrl.errors import ConfigError
from hybridrl.layout.trainers import TrainerLayout, layout_of
from hybridrl.models.spec import ModelSpec

DeviceKind = Literal["cpu", "cuda"]
"""What trainer ranks compute on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSetup:
    """What every rank that holds a model is made from; equal on all ranks but for `rank` and `device`."""

    rank: int
    """In [0, parallel.num_ranks): tensor parallel fastest, then context, data, pipeline."""

    rendezvous: str
    """Where the ranks meet: file:///path, or tcp://host:port."""

    parallel: TrainParallel
    """With its dp."""

    model: ModelSpec
    model_folder: Path
    """Hugging Face format: the initial weights, which are the reference policy too."""

    actor: ActorConfig
    seed: int
    timeout_s: float
    """A collective may take this long, then the ranks give up."""

    device: int | None = None
    """CUDA device of the rank, as its process counts them; None: it computes on the CPU."""

    deterministic: bool = False
    """The same input gives the same bits, on a GPU too."""

    @property
    def host(self) -> DeviceKind:
        return "cpu" if self.device is None else "cuda"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySetup(RankSetup):
    """A rank of the policy, or of a critic, reference or teacher with ranks of its own."""

    algorithm: AlgorithmConfig
    critic: CriticConfig
    temperature: float
    """Of sampling; logits are divided by it."""

    max_response_tokens: int
    num_optimizer_steps: int
    """Of the whole run: the length of the learning-rate schedule."""

    remote_columns: frozenset[str] = frozenset()
    """Token columns that other groups of ranks compute for these."""

    async_save: bool = False
    """Checkpoints are written by a thread beside the training."""


def module_of(backend: str) -> str:
    """The module that a backend is opened by; its import may take seconds."""
    return backend.partition(":")[0] if ":" in backend else f"hybridrl.trainer.{backend}.backend"


def make_layout(setup: RankSetup) -> TrainerLayout:
    """Who holds which part of the model.

    Raises:
        LayoutError: the model does not divide over the ranks.
        ModelError: it has a part that the backend's layers lack.
        ConfigError: the config speaks of experts, of which it has none.
    """
    kind, where = layout_of(setup.actor.backend), str(setup.model_folder)
    kind.refuse_unbuildable(setup.model, where=where)
    refuse_unfit_experts(setup.actor.moe, setup.model, where=where)
    return kind.of(setup.model, on_gpu=setup.host == "cuda", **setup.parallel.sizes)


def refuse_unfit_experts(moe: MoEConfig, model: ModelSpec, *, where: str) -> None:
    """
    Args:
        where: the model was named.

    Raises:
        ConfigError: a key about experts is set for a model that has none.
    """
    plain = MoEConfig()
    for key, value in moe:
        if not model.num_experts and value != getattr(plain, key):
            raise ConfigError(
                f"actor.moe.{key} is {value}, the model of family {model.family} has no experts",
                where=where,
                fix=f"remove actor.moe.{key}",
            )
