"""How answers are sampled, and from which seed: a function of the run's seed and the prompt, so a resumed run
repeats it."""

from collections.abc import Mapping
from typing import Any

from hybridrl.algorithms.declared import declared
from hybridrl.algorithms.needs import head_tokens_of
from hybridrl.config.schema import Config
from hybridrl.config.section import PluginConfig
from hybridrl.errors import DataError
from hybridrl.seeds import group_seed
from hybridrl.types import GroupTask, Prompt, Sampling, in_row

_HELDOUT = 2**62
"""Index of the first evaluation's seed; no stream has as many prompts."""


def group_task(cfg: Config, index: int, prompt: Prompt, *, greedy: bool) -> GroupTask:
    """The task of training prompt `index`.

    Args:
        greedy: answer once greedily too, as a baseline.
    """
    longest = response_limit(cfg, prompt, cfg.rollout.max_response_tokens)
    both: dict[str, Any] = {
        "stop": cfg.rollout.stop,
        "stop_token_ids": cfg.rollout.stop_token_ids,
        "head_tokens": _head_tokens(cfg.algorithm.loss),
    }
    return GroupTask(
        index=index,
        prompt=prompt,
        sampling=Sampling(
            num_samples=cfg.algorithm.samples_per_prompt,
            max_response_tokens=longest,
            temperature=cfg.rollout.temperature,
            seed=group_seed(cfg.run.seed, index),
            **both,
        ),
        greedy=Sampling(num_samples=1, max_response_tokens=longest, temperature=0.0, seed=0, **both)
        if greedy
        else None,
    )


def _head_tokens(loss: PluginConfig) -> int:
    return head_tokens_of(declared("policy_loss", loss.name, loss.options, where="algorithm.loss"))


def response_limit(cfg: Config, prompt: Prompt, most: int) -> int:
    """Most tokens of an answer to a prompt.

    Args:
        most: limit of all prompts.

    Raises:
        DataError: the column of rollout.limit_field is not a number of tokens.
    """
    return min(most, row_limit(cfg.rollout.limit_field, prompt.row, f"prompt {prompt.uid}") or most)


def row_limit(field: str | None, row: Mapping[str, Any], place: str) -> int | None:
    """Most tokens of an answer by a column of the data; None: the row has no limit of its own.

    Args:
        place: name of the row, for messages.

    Raises:
        DataError: it is not a number of tokens.
    """
    value = None if field is None else in_row(row, field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(
            f"{place}: {field} = {value!r:.80} is no number of tokens",
            where="rollout.limit_field",
            fix="a whole number of 1 or more in that column, or null",
        )
    return value


def heldout_sampling(cfg: Config, step: int) -> Sampling:
    """Sampling of an evaluation; its seeds are not those of any training prompt."""
    return Sampling(
        num_samples=cfg.evaluate.samples_per_prompt,
        max_response_tokens=cfg.evaluate.max_response_tokens or cfg.rollout.max_response_tokens,
        temperature=cfg.evaluate.temperature,
        top_p=cfg.evaluate.top_p,
        top_k=cfg.evaluate.top_k or -1,
        min_p=cfg.evaluate.min_p,
        stop=cfg.rollout.stop,
        stop_token_ids=cfg.rollout.stop_token_ids,
        seed=group_seed(cfg.run.seed, _HELDOUT + step) % 2**31,
    )
