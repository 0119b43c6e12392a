"""The data types of a run: prompts, groups of trajectories, and reports. They hold metadata and scalars;
tokens are in batch.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

PolicyVersion = int
"""Version of the policy's weights: 0 is the initial policy, step k produces version k."""

Finish = Literal["stop", "length", "abort"]
"""Why an answer ended: at an end token, at the token limit, or because it was aborted."""


Ended = Literal["done", "max_turns", "max_tokens", "overflow", "deadline", "failed"]
"""Why an episode ended: the environment said so, its turns were used up, an answer or the messages of the
environment filled the context, the time of its program was over, or its environment failed again and
again."""

ENVIRONMENT_PART = "environment"
"""Part of a reward that the turns of an episode have together."""


@dataclass(frozen=True, slots=True)
class Hint:
    """What the teacher reads in addition to a prompt."""

    token_ids: tuple[int, ...]

    after: int = 0
    """Tokens of the trajectory that stay before it: 1 for a token that begins the text, otherwise 0."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question, tokenised with the model's chat template."""

    uid: str
    """Identifier, unique in the run and stable over resumes: "<split>/<row>" of its source."""

    token_ids: tuple[int, ...]
    row: Mapping[str, Any]
    """Row of the data set; rewards read their answer field from it."""

    source: str = "train"
    """Name of the data set in metrics, as in val-core/<source>/..."""

    hint: Hint | None = None
    """None unless algorithm.hint is set."""

    pictures: tuple[bytes | str, ...] = ()
    """Its pictures in the order of their placeholders: an encoded picture, or the path of its file."""

    arrays: Mapping[str, Any] = field(default_factory=dict)
    """Inputs of the model other than tokens, by the names of their columns. Only where prompts are answered:
    the pictures as arrays."""


def in_row(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of a field inside one (reward_model.ground_truth); None: it has none."""
    value: Any = row
    for part in (name,) if name in row else name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Options with which an engine samples answers to a prompt."""

    num_samples: int
    max_response_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    """Texts that end an answer, which holds them."""

    seed: int | None = None
    """Seed of this request; None lets the engine choose."""

    head_tokens: int = 0
    """Answers contain, for each of their tokens, this many tokens that were likeliest there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTask:
    """A prompt whose samples are to be generated."""

    index: int
    """Index of the prompt in its stream: 0, 1, ... over the whole run, the same after a resume."""

    prompt: Prompt
    sampling: Sampling
    """`seed` is the group's, of seeds.group_seed(run seed, index). Sample i is drawn with
    seeds.sample_seed(seed, i, turn=0)."""

    greedy: Sampling | None = None
    """Options of a further answer, which comes back as Group.greedy. None: there is none."""


HANG_PART = "timeout"
"""Reward part of an answer that was not scored in time. It is for metrics only; estimators do not get it."""


@dataclass(slots=True)
class Trajectory:
    """One sampled answer without its tokens, which are in its group's block."""

    row: int
    """Row of the block that has its tokens."""

    prompt_tokens: int
    """Length of the prompt."""

    response_tokens: int
    """Length after the prompt, including tool and observation tokens."""

    trained_tokens: int
    """Number of tokens that are trained on: the sum of the loss mask."""

    finish: Finish
    version: PolicyVersion
    """Oldest policy version that generated any of its tokens."""

    reward: float | None = None
    """Outcome reward; None until it is scored."""

    reward_parts: dict[str, float] = field(default_factory=dict)
    """Named parts of the reward."""

    text: str | None = None
    """The answer as text, kept only for the few trajectories that are shown to the user."""

    transcript: tuple[tuple[str, str], ...] = ()
    """(who, text) of the turns of its episode and of what lies between them, kept together with `text`. Empty
    without an environment."""

    turns: int = 1
    """Number of answers of the policy in the conversation; 1 without an environment."""

    turn_reward: float = 0.0
    """Sum of the rewards that the environment gave its turns; a part of `reward`."""

    ended: Ended | None = None
    """Why its episode ended; None: there is no environment."""

    reported: Mapping[str, float] = field(default_factory=dict)
    """What the environment reported of a held-out episode: sums over it, by name, at its first role."""

    agent: int = 0
    """Role of the trajectory in its episode."""

    episode: int = 0
    """Number of the episode in its group. Its roles are one trajectory each."""

    branch: int = 0
    """Number of the trajectory among those of its role in its episode. All have the reward of number 0, which
    has the last answer. Only programs open branches."""

    unjudged: str = ""
    """Why it has no reward: a judge failed. "": it has one, or is not scored yet."""

    spans: tuple[tuple[PolicyVersion, int], ...] = ()
    """(version, number of sampled tokens) of each policy version that sampled tokens of it, ascending by
    version. Empty: `version` sampled all of them."""

    @property
    def sampled_tokens(self) -> int:
        """Number of tokens that the policy sampled."""
        return sum(count for _, count in self.spans) if self.spans else self.trained_tokens


@dataclass(slots=True)
class Group:
    """The answers to one prompt."""

    prompt: Prompt
    trajectories: list[Trajectory]
    block: Any
    """The tokens: a batch.TokenBlock, or an opaque reference to one that the driver never opens."""

    greedy_reward: float | None = None
    """Reward of the greedy answer to the same prompt; None unless the estimator needs it."""

    index: int = -1
    """Index of the prompt in its stream, of GroupTask; -1 for a prompt of no stream."""

    greedy: "Group | None" = None
    """The greedy answer to the same prompt, a group of one; None unless the task asked for it."""

    failures: tuple[str, ...] = ()
    """What happened to its episodes whose environments failed, which have no trajectory."""

    overdue: tuple[str, ...] = ()
    """What the programs of its episodes were doing that ended at their deadline."""

    unjudged: tuple[str, ...] = ()
    """Why episodes without a reward have none; they have no trajectory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What engines did with their time and tokens, summed over all engines.

    The three kinds of seconds add up to the wall-clock seconds times the number of engines.
    """

    generating_s: float = 0.0
    """Seconds in which at least one request ran and the engine was not paused."""

    paused_s: float = 0.0
    """Seconds in which requests were open and the engine was paused, swapping or asleep."""

    idle_s: float = 0.0
    """Seconds without an open request."""

    sampled_tokens: int = 0
    """Tokens sampled for groups, whatever became of them; those of `generate` do not count."""

    aborted_tokens: int = 0
    """The part of sampled_tokens whose groups were cancelled before they ended, counted when they were."""

    recomputed_tokens: int = 0
    """Tokens in the key-value cache that were computed again after a pause, prompts included."""

    kept_cache_error: float | None = None
    """Largest difference in log-probability, in nats, between a token that was sampled with keys and values
    of older weights and the same token with those of its own version. None: no such token was compared. A sum
    over engines has the largest of them."""

    recomputing_s: float = 0.0
    """The part of generating_s spent on recomputed_tokens; 0 if the engine does not tell."""

    sums: Mapping[str, float] = field(default_factory=dict)
    """What episodes with an environment counted, by name, as tool/search/calls."""

    serving_engines: int = 0
    """Engines that serve now."""

    replaced_engines: int = 0
    """Engines that were lost and replaced."""

    asked_again: int = 0
    """Groups of lost engines that were asked again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedTrajectory:
    """The tokens of one trajectory of a step, for a person to read.

    A column is over its trained tokens; None: it was not computed.
    """

    index: int
    """Index in the batch of the step."""

    token_ids: tuple[int, ...]
    """Prompt and response."""

    prompt_tokens: int
    trained: tuple[bool, ...]
    """Whether each token is trained on; the policy has generated those."""

    rollout_logp: tuple[float, ...] | None
    old_logp: tuple[float, ...] | None
    advantage: tuple[float, ...] | None
    suspicious: bool
    """Whether trainer and engine disagree on it more than on nearly all others of the step."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """The report of one optimizer step; the same on every rank."""

    version: PolicyVersion
    """Version that the policy update produces."""

    loss: float
    """Global objective of the minibatch, in the unit of the aggregation mode."""

    grad_norm: float
    """Global L2 norm before clipping."""

    lr: float
    metrics: Mapping[str, float]
    """Metrics under verl's names: actor/pg_loss, actor/pg_clipfrac, actor/ppo_kl, actor/entropy, ..."""

    warnings: tuple[tuple[str, str], ...] = ()
    """(guard, text) of suspicious findings in the batch."""


@dataclass(frozen=True, slots=True)
class SwapReport:
    """The report of one weight swap."""

    version: PolicyVersion
    time_s: float
    num_tensors: int
    """Tensors of all engines."""

    written_bytes: int
    """Bytes that trainer ranks wrote."""

    staging_bytes: int
    """Largest staging buffer of a trainer rank."""

    checksums_equal: bool | None
    """None: the engines' own loader took the weights, and checksums cannot be compared."""

    sent_bytes: int = 0
    """The part of written_bytes that a trainer rank sent to another one on the engine's node."""

    replays: int = 0
    """How often the weights were written again, because a checksum differed or a rank failed."""


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; 0 if there are no values, so that a metric of an empty selection is a number."""
    return sum(values) / len(values) if values else 0.0


def hints_of(groups: Sequence[Group]) -> tuple[Hint, ...] | None:
    """The hint of each group; None if a prompt has none."""
    found = tuple(group.prompt.hint for group in groups if group.prompt.hint is not None)
    return found if len(found) == len(groups) else None
