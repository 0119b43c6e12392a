"""What a trainer rank is made from. Imports no Megatron: the controller's process makes these."""

from dataclasses import dataclass
from pathlib import Path

from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.training import ActorConfig, CriticConfig, TrainParallel
from hybridrl.errors import ModelError
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.models.spec import ModelSpec

_BUILDABLE = ("llama", "qwen2", "qwen3")
"""Families whose layers the trainer can build."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSetup:
    """Everything that one trainer rank is made from; equal on all ranks but for `rank`."""

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

    timeout_s: float
    """A collective may take this long, then the ranks give up."""


def megatron_layout(model: ModelSpec, parallel: TrainParallel) -> MegatronLayout:
    """Who holds which part of the model.

    Raises:
        LayoutError: the model does not divide over the ranks.
    """
    # A CPU pays for every padded row of the output layer, and gains nothing from round sizes.
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
        vocab_multiple=1,
    )


def refuse_unbuildable(model: ModelSpec, *, where: str) -> None:
    """
    Args:
        where: the model was named.

    Raises:
        ModelError: the trainer has no layers of the model's kind, or lacks a part of them.
    """
    if model.family not in _BUILDABLE:
        raise ModelError(
            f"the trainer cannot build a model of family {model.family}",
            where=where,
            fix=f"use one of {', '.join(_BUILDABLE)}",
        )
    if model.attention_out_bias:
        raise ModelError(
            "a bias on the attention output is not supported", where=where, fix="use a model without"
        )
