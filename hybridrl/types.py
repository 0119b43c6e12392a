"""The nouns of a run: prompts in, trajectories in groups, reports out. Metadata and scalars only; tokens live
in batch.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

PolicyVersion = int
"""Names the weights: 0 is the initial policy, step k produces version k."""

Finish = Literal["stop", "length", "abort"]
"""Why an answer ended: an end token, the token limit, or the engine gave it up."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question, tokenised with the model's chat template."""

    uid: str
    """Unique in the run, stable over resumes: "<split>/<row>" of its source."""

    token_ids: tuple[int, ...]
    row: Mapping[str, Any]
    """The source row; rewards read their answer field here."""

    source: str = "train"
    """Names the data set in metrics, as in val-core/<source>/..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How an engine samples answers to a prompt."""

    num_samples: int
    max_response_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    """Seed of this request; None leaves it to the engine."""


HANG_PART = "timeout"
"""Part of the reward of an answer that was not judged in time: for metrics, no estimator sees it."""


@dataclass(slots=True)
class Trajectory:
    """One sampled answer without its tokens, which are row `row` of its group's block."""

    row: int
    prompt_tokens: int
    response_tokens: int
    """Length after the prompt, tool and observation tokens included."""

    trained_tokens: int
    """Tokens that the policy generated: the sum of the loss mask."""

    finish: Finish
    version: PolicyVersion
    """Oldest policy version of any of its tokens."""

    reward: float | None = None
    """Outcome reward; None until it was scored."""

    reward_parts: dict[str, float] = field(default_factory=dict)
    text: str | None = None
    """The answer as text, kept only for the few trajectories that are shown to a person."""

    turns: int = 1
    """Answers of the policy in it: an engine gives one to a prompt."""


@dataclass(slots=True)
class Group:
    """The answers to one prompt."""

    prompt: Prompt
    trajectories: list[Trajectory]
    block: Any
    """Where the tokens are: a batch.TokenBlock, or an opaque reference to one that the driver never opens."""

    greedy_reward: float | None = None
    """Of the greedy answer to the same prompt; None unless the estimator needs it."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step did; the same on every rank."""

    version: PolicyVersion
    loss: float
    """Global objective of the minibatch, in the unit of the aggregation mode."""

    grad_norm: float
    """Global L2 norm before clipping."""

    lr: float
    metrics: Mapping[str, float]
    """Named as verl names them: actor/pg_loss, actor/pg_clipfrac, actor/ppo_kl, actor/entropy, ..."""

    warnings: tuple[tuple[str, str], ...] = ()
    """(guard, text) of what looks suspicious in the batch."""


@dataclass(frozen=True, slots=True)
class SwapReport:
    """What one weight swap did."""

    version: PolicyVersion
    time_s: float
    num_tensors: int
    written_bytes: int
    staging_bytes: int
    checksums_equal: bool | None
    """None: engines took the weights through their own loader, and only said that it succeeded."""

    sent_bytes: int = 0
    """Of what was written, what a trainer rank sent to another one, on the engine's node."""

    replays: int = 0
    """Times that the weights were written again, after a checksum that differed or a rank that failed."""


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; 0 for none, so that a metric of an empty selection is a number."""
    return sum(values) / len(values) if values else 0.0
