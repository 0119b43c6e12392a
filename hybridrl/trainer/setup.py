"""What a trainer rank is made from. Imports no Megatron: the controller's process makes these."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.training import ActorConfig, CriticConfig, MoEConfig, TrainParallel
from hybridrl.errors import ConfigError, ModelError
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.models.spec import ModelSpec

Host = Literal["cpu", "cuda"]
"""What trainer ranks compute on."""

ROPE_SCALINGS = ("linear", "llama3", "yarn")
"""Kinds, as config.json names them, that the trainer has beside the plain rotary embedding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSetup:
    """Everything that one trainer rank is made from; equal on all ranks but for `rank` and `device`."""

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
    algorithm: AlgorithmConfig
    critic: CriticConfig
    temperature: float
    """Of sampling; logits are divided by it."""

    max_response_tokens: int
    seed: int
    num_optimizer_steps: int
    """Of the whole run: the length of the learning-rate schedule."""

    elsewhere: frozenset[str] = frozenset()
    """Token columns that other groups of ranks compute for these."""

    timeout_s: float
    """A collective may take this long, then the ranks give up."""

    async_save: bool = False
    """Checkpoints are written by a thread beside the training."""

    device: int | None = None
    """CUDA device of the rank, as its process counts them; None: it computes on the CPU."""

    deterministic: bool = False
    """The same input gives the same bits, on a GPU too."""

    @property
    def host(self) -> Host:
        return "cpu" if self.device is None else "cuda"


def megatron_layout(model: ModelSpec, parallel: TrainParallel, host: Host = "cpu") -> MegatronLayout:
    """Who holds which part of the model.

    Raises:
        LayoutError: the model does not divide over the ranks.
    """
    on_gpu = host == "cuda"
    return MegatronLayout(
        model,
        tp=parallel.tp,
        pp=parallel.pp,
        dp=parallel.dp or 1,
        cp=parallel.cp,
        ep=parallel.ep,
        etp=parallel.etp,
        vpp=parallel.vpp,
        stage_layers=parallel.stage_layers,
        # A CPU pays for every padded row of the output layer, and gains nothing from round sizes.
        vocab_multiple=128 if on_gpu else 1,
        transformer_engine=on_gpu,
    )


def refuse_unbuildable(model: ModelSpec, *, where: str) -> None:
    """
    Args:
        where: the model was named.

    Raises:
        ModelError: its layers have a part that the trainer's lack.
    """
    if model.attention_out_bias:
        raise ModelError(
            "a bias on the attention output is not supported", where=where, fix="use a model without"
        )
    kind = (model.rope_scaling or {}).get("rope_type")
    windows = " on a model with windows" if model.windowed_layers else ""
    if kind not in (None, *ROPE_SCALINGS) or (kind == "yarn" and windows):
        raise ModelError(
            f"rope scaling {kind!r}{windows} is not supported",
            where=where,
            fix=f"use a model with {', '.join(ROPE_SCALINGS)} or plain rotary embedding",
        )


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
