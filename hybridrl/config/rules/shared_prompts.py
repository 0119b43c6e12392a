"""Rules about actor.share_prompts: which models and machines it is for."""

from collections.abc import Iterator
from typing import Any

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import RuleContext
from hybridrl.config.schema import Config
from hybridrl.errors import ConfigError
from hybridrl.wording import counted

_FIX = "remove actor.share_prompts"


def shared_prompts_fit_the_run(loaded: LoadedConfig[Any], context: RuleContext) -> Iterator[ConfigError]:
    """The rule holds for training on examples too, where nothing is shared."""
    if not loaded.config.actor.share_prompts:
        return
    where = loaded.where("actor.share_prompts")
    if not isinstance(loaded.config, Config):
        yield ConfigError("actor.share_prompts is for several answers to a prompt", where=where, fix=_FIX)
        return
    if loaded.config.algorithm.samples_per_prompt == 1:
        yield ConfigError(
            "actor.share_prompts shares nothing with algorithm.samples_per_prompt = 1", where=where, fix=_FIX
        )
    yield from _on_gpus(loaded, context)
    if context.spec is not None and context.spec.vision is not None:
        yield ConfigError(
            f"actor.share_prompts with {loaded.config.model.path}, whose prompts may have pictures",
            where=where,
            fix=_FIX,
        )


def _on_gpus(loaded: LoadedConfig[Config], context: RuleContext) -> Iterator[ConfigError]:
    per_node = loaded.config.cluster.gpus_per_node
    num_gpus = context.num_gpus if per_node is None and context.here else per_node or 0
    if num_gpus:
        yield ConfigError(
            f"actor.share_prompts with {counted(num_gpus, 'GPU')}: Transformer Engine's attention cannot "
            "attend to a shared prompt",
            where=loaded.where("actor.share_prompts"),
            fix=_FIX,
        )
