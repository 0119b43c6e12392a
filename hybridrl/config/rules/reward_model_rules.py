"""Rules about the section reward_model: what it demands of the model that it names, and of other keys."""

from collections.abc import Iterator
from pathlib import Path

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import RuleContext
from hybridrl.config.rules.parallel import wrong_sharding
from hybridrl.config.schema import Config, RewardModelConfig
from hybridrl.errors import AbsentModelError, ConfigError, HybridRLError, ModelError
from hybridrl.models import hub
from hybridrl.models.spec import VALUE_HEAD, ModelSpec
from hybridrl.wording import counted

HEAD = VALUE_HEAD.hf[0]
"""Name of the tensor in a reward model's folder that turns hidden states into a score."""

_TRAIN_ONE = "give the export of a `hybridrl rm` run"


def no_rule(config: Config) -> bool:
    """Whether neither a rule nor an environment gives a reward, so that the reward model judges alone."""
    return config.reward.name == "none" and not config.has_episodes


def reward_model_spec(config: Config) -> ModelSpec | None:
    """Spec of the reward model; None: there is none, or its folder is not here or holds no known model."""
    own = config.reward_model
    try:
        return hub.find_spec(own.path) if own else None
    except ModelError:
        return None


def reward_model_fits_the_run(loaded: LoadedConfig, context: RuleContext) -> Iterator[HybridRLError]:
    own = loaded.config.reward_model
    if own is None:
        if no_rule(loaded.config):
            yield ConfigError(
                "reward = none judges no answer, and neither reward_model nor environment is set",
                where=loaded.where("reward.name"),
                fix="set reward_model.path, environment, or another reward",
            )
        return
    if own.weight == 0:
        yield ConfigError(
            "reward_model.weight = 0: its score has no effect",
            where=loaded.where("reward_model.weight"),
            fix="remove reward_model",
        )
    try:
        spec = hub.find_spec(own.path)
    except ModelError as error:
        yield error
        return
    if spec is None:
        yield AbsentModelError(
            f"no model folder at reward_model.path = {own.path}",
            where=loaded.where("reward_model.path"),
            fix=_TRAIN_ONE,
        )
        return
    yield from _wrong_model(loaded, own, spec)


def _wrong_model(loaded: LoadedConfig, own: RewardModelConfig, spec: ModelSpec) -> Iterator[HybridRLError]:
    rollout, where = loaded.config.rollout, loaded.where("reward_model.path")
    if not spec.value_head:
        yield ModelError(
            f"the model {own.path} has no {HEAD}: by its config.json it gives a vocabulary and no score",
            where=where,
            fix=_TRAIN_ONE,
        )
    longest = rollout.longest_tokens
    both = "rollout.max_prompt_tokens + max_response_tokens"
    keys = "rollout.max_context_tokens" if rollout.max_context_tokens else both
    if longest > spec.max_positions:
        yield ConfigError(
            f"{keys} = {longest} is more than the "
            f"{counted(spec.max_positions, 'position')} of the reward model {Path(own.path).name}",
            where=loaded.where("rollout.max_response_tokens", "reward_model.path"),
            fix=f"lower both to {spec.max_positions} together",
        )
    if own.parallel is not None:
        yield from wrong_sharding(loaded, "reward_model.parallel", own.parallel, spec, path=own.path)
