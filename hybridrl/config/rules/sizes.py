"""A rule about numbers that no run has: a slip of the keyboard, or a unit that was meant differently."""

from collections.abc import Iterator, Mapping
from typing import Any

from hybridrl.config.load import LoadedConfig, values
from hybridrl.config.rules.base import RuleContext
from hybridrl.errors import ConfigError, HybridRLError

_MOST = 10**12
"""No count of anything in a run is larger; a seed may be, and so may bytes."""

_LIMITS: Mapping[str, int] = {
    "run.seed": 2**63 - 1,
    "run.steps": 10**9,
    "batch.prompts_per_step": 10**8,
    "batch.examples_per_step": 10**8,
    "batch.minibatch_prompts": 10**8,
    "batch.epochs": 10**6,
    "batch.max_lag": 10**6,
    "algorithm.samples_per_prompt": 10**6,
    "evaluate.samples_per_prompt": 10**6,
    "reward.num_workers": 10**4,
    "rollout.max_prompt_tokens": 10**8,
    "rollout.max_response_tokens": 10**8,
    "rollout.max_context_tokens": 10**8,
}
"""Key -> the largest value that can be meant."""


def numbers_are_of_this_world(loaded: LoadedConfig[Any], context: RuleContext) -> Iterator[HybridRLError]:
    for key, value in values(loaded.config):
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        most = _LIMITS.get(key, None if key.endswith("_bytes") else _MOST)
        if is_whole and most is not None and abs(value) > most:
            digits = len(str(abs(value)))
            shown = f"{value:,}" if digits <= 15 else f"a number of {digits} digits"
            yield ConfigError(
                f"{key} = {shown} is more than any run has", where=loaded.where(key), fix=f"at most {most:,}"
            )
