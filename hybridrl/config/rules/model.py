"""Rules about the model: its teacher, and the precision and the lengths that it supports."""

from collections.abc import Iterator

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import RuleContext, model_name
from hybridrl.config.rules.roles import microbatch_limits
from hybridrl.errors import AbsentModelError, ConfigError, HybridRLError, ModelError
from hybridrl.models import hub
from hybridrl.wording import counted


def teacher_is_of_the_policys_kind(loaded: LoadedConfig, context: RuleContext) -> Iterator[HybridRLError]:
    teacher, where = loaded.config.algorithm.teacher, loaded.where("algorithm.teacher")
    if teacher is None:
        return
    try:
        spec = hub.find_spec(teacher)
    except ModelError as error:
        yield error
        return
    if spec is None:
        yield AbsentModelError(
            f"no model folder at algorithm.teacher = {teacher}", where=where, fix="name one"
        )
        return
    if context.spec is not None and spec != context.spec:
        yield ModelError(
            f"the teacher {teacher} is not of the architecture and sizes of {loaded.config.model.path}",
            where=where,
            fix="use a teacher that differs in its weights only",
        )
    algorithm, folder = loaded.config.algorithm, hub.find_folder(teacher)
    # With a coefficient of its own the teacher is beside an estimator of rewards. An estimator from outside
    # may use rewards too; the built-in one of a teacher does so only with this option.
    estimator = algorithm.estimator
    rewarded = (
        algorithm.teacher_coefficient or ":" in estimator.name or estimator.options.get("outcome_weight")
    )
    policy = hub.find_folder(loaded.config.model.path)
    hinted = algorithm.hint is not None
    if folder and policy and folder.samefile(policy) and not rewarded and not hinted:
        yield ConfigError(
            f"algorithm.teacher = {teacher} is model.path, the policy itself: every advantage would be 0",
            where=where,
            fix="use a teacher that differs in its weights, or set algorithm.estimator.outcome_weight",
        )


def precision_suits_the_model(loaded: LoadedConfig, context: RuleContext) -> Iterator[HybridRLError]:
    if loaded.config.actor.precision == "fp16" and context.spec is not None and context.spec.num_experts:
        what = (
            f"actor.precision = fp16 has one loss scale, {model_name(loaded)} has experts that need their own"
        )
        yield ConfigError(what, where=loaded.where("actor.precision"), fix="use bf16")


def a_trajectory_fits_a_microbatch(loaded: LoadedConfig, context: RuleContext) -> Iterator[HybridRLError]:
    longest = loaded.config.rollout.longest_tokens
    if context.spec is not None and longest > context.spec.max_positions:
        return  # a_trajectory_fits_the_model says what to lower; a larger microbatch would not help
    for key, limit in microbatch_limits(loaded.config):
        yield from _longest(loaded, limit, f"{key} = {limit}", key, "raise it to {}", hinted=True)


def a_trajectory_fits_the_model(loaded: LoadedConfig, context: RuleContext) -> Iterator[HybridRLError]:
    if context.spec is not None:
        limit = context.spec.max_positions
        name, key = f"the {counted(limit, 'position')} of {model_name(loaded)}", "rollout.max_response_tokens"
        several = bool(loaded.config.rollout.max_context_tokens)
        fix = "lower it to {limit}" if several else "lower both to {limit} together"
        yield from _longest(loaded, limit, name, key, fix, hinted=True)


def a_trajectory_fits_the_cache(loaded: LoadedConfig, context: RuleContext) -> Iterator[HybridRLError]:
    limit = loaded.config.rollout.kv_cache_tokens
    if limit is not None:
        yield from _longest(
            loaded, limit, f"rollout.kv_cache_tokens = {limit}", "rollout.kv_cache_tokens", "raise it to {}"
        )


def _longest(
    loaded: LoadedConfig, limit: int, name: str, key: str, fix: str, *, hinted: bool = False
) -> Iterator[HybridRLError]:
    """
    Args:
        hinted: the limit is also for trajectories with their hints.
    """
    rollout, hint = loaded.config.rollout, loaded.config.algorithm.hint
    more, also = (hint.max_tokens, " + algorithm.hint.max_tokens") if hinted and hint else (0, "")
    longest = rollout.longest_tokens + more
    if longest > limit:
        if rollout.max_context_tokens:
            what = f"rollout.max_context_tokens = {longest} is more than {name}"
            keys = ["rollout.max_context_tokens", key]
        else:
            what = f"rollout.max_prompt_tokens + max_response_tokens = {longest} is more than {name}"
            keys = [key, "rollout.max_response_tokens", "rollout.max_prompt_tokens"]
        what = what.replace(" = ", f"{also} = ", 1)
        yield ConfigError(what, where=loaded.where(*keys), fix=fix.format(longest, limit=limit - more))
