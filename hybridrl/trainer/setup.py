"""Arguments of a trainer rank. The controller's process makes them, so this module imports no backend."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.training import ActorConfig, CriticConfig, MoEConfig, TrainParallel
from hybridrl.errors import ConfigError
from hybridrl.layout.trainers import TrainerLayout, layout_of
from hybridrl.models.spec import ModelSpec

DeviceKind = Literal["cpu", "cuda"]
"""Kind of device on which trainer ranks compute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSetup:
    """Arguments of every rank that holds a model. Only `rank` and `device` differ between ranks."""

    rank: int
    """Rank in [0, parallel.num_ranks); tensor parallel varies fastest, then context, data, pipeline."""

    rendezvous: str
    """Rendezvous of the process group: file:///path or tcp://host:port."""

    parallel: TrainParallel
    """Parallel layout, with its dp filled in."""

    model: ModelSpec
    model_folder: Path
    """Folder in Hugging Face format with the initial weights, which are also the reference policy."""

    actor: ActorConfig
    seed: int
    timeout_s: float
    """Timeout of a collective, in seconds."""

    device: int | None = None
    """Index of the rank's CUDA device in its process; None computes on the CPU."""

    pictures: bool = False
    """Whether prompts have pictures. Without them nothing of a vision tower is trained, and no token is
    banned."""

    deterministic: bool = False
    """The same input gives the same bits, on a GPU too."""

    @property
    def banned(self) -> tuple[int, ...]:
        """Tokens that the policy cannot sample: in a later prompt a placeholder would need a picture."""
        vision = self.model.vision
        return (vision.image_token,) if self.pictures and vision is not None else ()

    @property
    def host(self) -> DeviceKind:
        return "cpu" if self.device is None else "cuda"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySetup(RankSetup):
    """Arguments of a rank of the policy, or of a critic, reference or teacher on dedicated ranks."""

    algorithm: AlgorithmConfig
    critic: CriticConfig
    temperature: float
    """Sampling temperature; logits are divided by it."""

    max_response_tokens: int
    num_optimizer_steps: int
    """Optimizer steps of the whole run: the length of the learning-rate schedule."""

    remote_columns: frozenset[str] = frozenset()
    """Token columns that other groups of ranks compute for these ranks."""

    async_save: bool = False
    """Checkpoints are written by a thread while training goes on."""

    goes_on_unsaved: bool = False
    """Training goes on if a checkpoint cannot be written."""


def module_of(backend: str) -> str:
    """The module that opens a backend. Importing it may take seconds."""
    return backend.rpartition(":")[0] if ":" in backend else f"hybridrl.trainer.{backend}.backend"


def refuse_untried(backend: str, config: Mapping[str, Any], *, where: str) -> None:
    """Try a model without a table, if the backend has a way to: a small one of its kind, in this process.

    Args:
        config: config.json of the model.

    Raises:
        ModelError: the backend computes another function than transformers does.
    """
    if ":" not in backend:
        importlib.import_module(f"hybridrl.trainer.{backend}.trial").refuse_other_function(
            config, where=where
        )


def make_layout(setup: RankSetup) -> TrainerLayout:
    """The layout that says which rank holds which part of the model.

    Raises:
        LayoutError: the model does not divide over the ranks, or a key has no meaning for the backend.
        ModelError: the model has a part that the backend does not support.
        ConfigError: the config sets options of experts, and the model has none; or an option that the backend
            does not have.
    """
    kind, where = layout_of(setup.actor.backend), str(setup.model_folder)
    kind.refuse_options(setup.actor)
    kind.refuse_unbuildable(setup.model, where=where)
    kind.refuse_keys(setup.model, setup.parallel)
    refuse_unfit_experts(setup.actor.moe, setup.model, where=where)
    return kind.of(setup.model, on_gpu=setup.host == "cuda", **setup.parallel.sizes)


def refuse_unfit_experts(moe: MoEConfig, model: ModelSpec, *, where: str) -> None:
    """Refuse options of experts for a model without experts.

    Args:
        where: the place in the config that names the model, for the error message.

    Raises:
        ConfigError: a key of `moe` is set, and the model has no experts.
    """
    plain = MoEConfig()
    for key, value in moe:
        if not model.num_experts and value != getattr(plain, key):
            raise ConfigError(
                f"actor.moe.{key} is {value}, the model of family {model.family} has no experts",
                where=where,
                fix=f"remove actor.moe.{key}",
            )
