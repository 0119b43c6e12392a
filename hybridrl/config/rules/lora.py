"""Rules about actor.lora: what it demands of the model, and where it cannot be used."""

from collections.abc import Iterator
from typing import Any

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import RuleContext
from hybridrl.config.training import ActorConfig
from hybridrl.errors import ConfigError
from hybridrl.models.linears import present
from hybridrl.wording import counted


def adapters_fit_the_model(loaded: LoadedConfig, context: RuleContext) -> Iterator[ConfigError]:
    lora, where = loaded.config.actor.lora, loaded.where("actor.lora.targets", "actor.lora")
    if lora is None:
        return
    if not lora.targets or len(set(lora.targets)) < len(lora.targets):
        yield ConfigError(
            f"actor.lora.targets = {list(lora.targets)} names no linear layer, or one twice",
            where=where,
            fix="name each once, or leave it out",
        )
    if context.spec is None:
        return
    found = present(context.spec)
    if absent := [target for target in lora.targets if target not in found]:
        fix = f"use actor.lora.targets: [{', '.join(found)}]" if found else "remove actor.lora"
        yield ConfigError(
            f"actor.lora.targets has {', '.join(absent)}, this model of family {context.spec.family} has no "
            "such linear layer outside of its experts",
            where=where,
            fix=fix,
        )


def gpus_train_no_adapters(loaded: LoadedConfig, context: RuleContext) -> Iterator[ConfigError]:
    per_node = loaded.config.cluster.gpus_per_node
    actor, usual = loaded.config.actor, ActorConfig().backend  # on GPUs made of Transformer Engine
    if actor.lora is not None and per_node and actor.backend == usual:
        yield ConfigError(
            f"actor.lora with {counted(per_node, 'GPU')} a node: Transformer Engine's layers take no "
            "adapters yet",
            where=loaded.where("actor.lora"),
            fix="set actor.backend: fsdp, or train all weights: leave actor.lora out; adapters train with "
            "cluster.gpus_per_node=0",
        )


def examples_train_all_weights(loaded: LoadedConfig[Any], context: RuleContext) -> Iterator[ConfigError]:
    """The rule holds for training on examples."""
    if loaded.config.actor.lora is not None:
        yield ConfigError(
            "actor.lora has no effect on training with examples, which trains all weights",
            where=loaded.where("actor.lora"),
            fix="remove actor.lora",
        )
