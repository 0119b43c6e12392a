"""Rules about pictures: that the model reads them, and where they cannot be used yet."""

from collections.abc import Iterator
from typing import Any

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import RuleContext, model_name
from hybridrl.config.schema import Config
from hybridrl.config.training import ActorConfig
from hybridrl.errors import ConfigError

_IMAGES, _VISION = "data.images", "actor.vision"


def pictures_fit_the_model(loaded: LoadedConfig[Any], context: RuleContext) -> Iterator[ConfigError]:
    """Refuses keys about pictures for a model that reads text only. It holds for runs of every kind."""
    spec, config = context.spec, loaded.config
    if spec is None or spec.vision is not None:
        return
    if config.actor.vision != ActorConfig().vision:
        yield ConfigError(
            f"actor.vision is set, and {model_name(loaded)} of family {spec.family} reads text only",
            where=loaded.where(_VISION),
            fix="remove actor.vision, or use a model that reads pictures",
        )
    if isinstance(config, Config) and config.data.images is not None:
        yield ConfigError(
            f"data.images is set, and {model_name(loaded)} of family {spec.family} reads text only",
            where=loaded.where(_IMAGES, "model.path"),
            fix="remove data.images, or use a model that reads pictures: Qwen3-VL, Qwen2.5-VL",
        )


def pictures_fit_the_run(loaded: LoadedConfig, context: RuleContext) -> Iterator[ConfigError]:
    """Refuses what a run with pictures cannot do yet, by the key that asks for it."""
    config = loaded.config
    if config.data.images is None:
        if config.actor.vision != ActorConfig().vision and context.spec and context.spec.vision:
            yield ConfigError(
                "actor.vision has no effect: data.images is not set, so nothing of the tower is trained",
                where=loaded.where(_VISION),
                fix="remove actor.vision, or set data.images",
            )
        return
    vision = config.actor.vision
    if vision.mode == "frozen" and vision.lr is not None:
        yield ConfigError(
            f"actor.vision.lr = {vision.lr:g} has no effect: with actor.vision.mode = frozen nothing of the "
            "tower is trained",
            where=loaded.where("actor.vision.lr", "actor.vision.mode"),
            fix="remove actor.vision.lr, or actor.vision.mode: train",
        )
    most, longest = config.data.images.max_tokens, config.rollout.max_prompt_tokens
    if most >= longest:
        yield ConfigError(
            f"data.images.max_tokens = {most} leaves no room for text in rollout.max_prompt_tokens = "
            f"{longest}",
            where=loaded.where("data.images.max_tokens", "rollout.max_prompt_tokens"),
            fix=f"rollout.max_prompt_tokens={2 * most}, or a smaller data.images.max_tokens",
        )
    for key, asked, shown, why, fix in _not_yet(config):
        if asked:
            yield ConfigError(f"{shown} with data.images: {why}", where=loaded.where(key, _IMAGES), fix=fix)


def _not_yet(config: Config) -> Iterator[tuple[str, bool, str, str, str]]:
    """(key, whether it is set, how it is set, why that cannot be, fix) of everything without pictures."""
    actor, rollout, unseen = config.actor, config.rollout, "it would not see the pictures"
    several, vpp = "what a program asks is text", actor.parallel.vpp
    first = "features are placed on the first layers, which are one chunk of the model"
    no_gradient = "a microbatch without pictures gives the tower no gradient, and its reduction never starts"
    adapters = "layers of a tower take no adapters, and would be frozen without a word"
    stale = "features of a running request would be those of older weights"
    yield "program", config.program is not None, "program", several, "remove it, or data.images"
    yield "frozen", config.frozen is not None, "frozen", unseen, "remove it, or data.images"
    told = config.algorithm.observations.coefficient > 0
    words = "the placeholders of pictures are no words that could be predicted"
    yield "algorithm.observations", told, "algorithm.observations", words, "leave it out"
    yield "judge", config.judge is not None, "judge", unseen, "judge with a rule"
    yield "reward_model", config.reward_model is not None, "reward_model", unseen, "judge with a rule"
    dedicated, none = config.reference.parallel is not None, "dedicated ranks get no pictures"
    yield "reference.parallel", dedicated, "reference.parallel", none, "leave it out"
    yield "actor.lora", actor.lora is not None, "actor.lora", adapters, "train all weights: leave it out"
    reduces_early = actor.overlap and actor.backend != "fsdp"  # FSDP reduces as it always does
    yield "actor.overlap", reduces_early, "actor.overlap = true", no_gradient, "leave it out"
    yield "actor.parallel.vpp", vpp > 1, f"actor.parallel.vpp = {vpp}", first, "vpp: 1"
    swap = f"rollout.swap = {rollout.swap}"
    yield "rollout.swap", rollout.swap != "drain", swap, stale, "rollout.swap: drain"
