"""Token blocks of trajectories, and the batch of one policy update.

Shape letters: N trajectories, T tokens of all trajectories, concatenated (prompt and response), U trained
tokens, M turns, G groups, L layers of the model, K experts of a token.
A column per token is aligned with the token that it describes: logp[t] is the log-probability of token t
given the tokens before it in its own trajectory. columns.py declares every column that a block may carry.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hybridrl.answer_columns import end_to_end, head_columns
from hybridrl.columns import COLUMNS, TURN_START, ColumnSpec, spec_of
from hybridrl.errors import ColumnError
from hybridrl.types import Group, Hint, PolicyVersion, Trajectory, hints_of


@dataclass(frozen=True, slots=True)
class TokenBlock:
    """The trajectories of one engine call as ragged columns, read from the object store without a copy."""

    token_T: np.ndarray
    """int32: token ids."""

    start_N: np.ndarray
    """int64 [N + 1]: trajectory i has the tokens start_N[i] to start_N[i + 1]."""

    prompt_tokens_N: np.ndarray
    """int32: number of prompt tokens at the beginning of each trajectory."""

    loss_mask_T: np.ndarray
    """bool: True at tokens that are trained on; the policy has generated them."""

    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Further columns, by the names of columns.py. A column per token is [T, ...]. A column per turn is
    [M, ...] and needs turn_start. A column per prompt is an object array [N] whose entries are the arrays of
    the trajectories' prompts; all samples of a prompt share one array, which is stored and sent once."""

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: lengths differ.
            ColumnError: a column is not declared, or does not match its declaration.
        """
        total = int(self.start_N[-1])
        for name in ("token_T", "loss_mask_T"):
            if len(getattr(self, name)) != total:
                raise ValueError(f"{name} has {len(getattr(self, name))} tokens, start_N says {total}")
        if len(self.prompt_tokens_N) != len(self):
            raise ValueError(f"{len(self.prompt_tokens_N)} prompt lengths for {len(self)} trajectories")
        for name, values in self.columns.items():
            _refuse_misfit(self, name, spec_of(name), values)
        if TURN_START in self.columns:
            _refuse_turns(self)

    def __len__(self) -> int:
        return len(self.start_N) - 1

    def row(self, index: int) -> slice:
        """The slice of trajectory `index` in every column per token."""
        return slice(int(self.start_N[index]), int(self.start_N[index + 1]))

    def column(self, name: str) -> np.ndarray:
        """A column by its name.

        Raises:
            ColumnError: the block does not carry the column.
        """
        if name not in self.columns:
            raise ColumnError(
                f"tokens came without column {name}, with {', '.join(sorted(self.columns)) or 'none'}",
                where="it is needed on trainer ranks",
                fix="remove the option that needs it, or provide it where the trajectories are generated",
            )
        return self.columns[name]

    def trained(self, name: str) -> np.ndarray:
        """A column at the trained tokens, [U, ...]; a column per turn gives each token the value of its turn.

        Raises:
            ColumnError: the block does not carry the column, or it is per prompt.
        """
        values = self.column(name)
        per = COLUMNS[name].per
        if per == "token":
            return values[self.loss_mask_T]
        if per == "turn":
            return values[_turn_of(np.flatnonzero(self.loss_mask_T), self.columns[TURN_START])]
        raise ColumnError(f"column {name} is per {per} and has no values at tokens")

    def without_older(self, oldest: PolicyVersion) -> "TokenBlock":
        """The block without tokens of versions before `oldest` in its loss mask.

        Raises:
            ColumnError: the block does not carry the versions of its tokens.
        """
        old_T = self.loss_mask_T & (self.column("version") < oldest)
        if not old_T.any():
            return self
        columns = dict(self.columns)
        for name, values in self.columns.items():
            outside = COLUMNS[name].outside
            if COLUMNS[name].per == "token" and outside is not None:
                columns[name] = values.copy()
                columns[name][old_T] = outside
        return replace(self, loss_mask_T=self.loss_mask_T & ~old_T, columns=columns)

    @classmethod
    def from_answers(
        cls,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int] | np.ndarray],
        logps: Sequence[Sequence[float] | np.ndarray],
        version: int | Sequence[np.ndarray],
        *,
        experts: Sequence[np.ndarray] | None = None,
        heads: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> "TokenBlock":
        """A block of single-turn answers, with every response token trained on.

        Args:
            prompts, responses, logps: one entry per trajectory; a response and its logps have equal length.
            version: the policy version that sampled all answers, or of each trajectory the version that
                sampled each token of its response.
            experts: int [tokens of the trajectory but the last, L, K].
            heads: columns engine_head and engine_head_logp of each response, [tokens, K] each.
        """
        prompt_tokens_N = np.array([len(p) for p in prompts], np.int32)
        response_tokens_N = np.array([len(r) for r in responses], np.int32)
        start_N = np.concatenate([[0], np.cumsum(prompt_tokens_N + response_tokens_N, dtype=np.int64)])
        token_T = np.empty(start_N[-1], np.int32)
        logp_T = np.zeros(start_N[-1], np.float32)
        mask_T = np.zeros(start_N[-1], bool)
        version_T = np.full(start_N[-1], -1, np.int32)
        versions = itertools.repeat(version, len(prompts)) if isinstance(version, int) else version
        trajectories = zip(prompts, responses, logps, versions, strict=True)
        for i, (prompt, response, logp, sampled_by) in enumerate(trajectories):
            at = int(start_N[i])
            middle, end = at + len(prompt), int(start_N[i + 1])
            token_T[at:middle], token_T[middle:end] = prompt, response
            logp_T[middle:end], mask_T[middle:end], version_T[middle:end] = logp, True, sampled_by
        columns = {"rollout_logp": logp_T, "version": version_T}
        if experts is not None:
            columns["experts"] = end_to_end(experts, start_N)
        if heads is not None:
            columns |= head_columns(heads, mask_T)
        return cls(token_T, start_N, prompt_tokens_N, mask_T, columns)


def spans(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """start[0], start[0] + 1, ... (length[0] of them), start[1], ..."""
    offset = np.cumsum(length) - length
    return np.arange(length.sum()) + np.repeat(start - offset, length)


def _turn_of(at_U: np.ndarray, turn_start: np.ndarray) -> np.ndarray:
    """Turn of each token: the last one that starts at or before it."""
    return np.searchsorted(turn_start, at_U, side="right") - 1


def _refuse_misfit(block: TokenBlock, name: str, spec: ColumnSpec, values: np.ndarray) -> None:
    """Refuse a column that does not match its declaration."""
    if spec.per == "trajectory":
        raise ColumnError(f"column {name} is per trajectory, which token blocks do not carry")
    if spec.per == "turn" and TURN_START not in block.columns:
        raise ColumnError(f"column {name} is per turn and needs {TURN_START}, which the block does not carry")
    count = {
        "token": len(block.token_T),
        "prompt": len(block),
        "turn": len(block.columns.get(TURN_START, ())),
    }
    if len(values) != count[spec.per]:
        raise ColumnError(
            f"column {name} has {len(values)} values; one per {spec.per} would be {count[spec.per]}"
        )
    if spec.per == "prompt" and values.dtype != object:
        raise ColumnError(
            f"column {name} is per prompt, and has type {values.dtype} where object is needed",
            fix="pass an array of type object, whose entries are the arrays of the trajectories' prompts",
        )
    arrays = [np.asarray(array) for array in (values if spec.per == "prompt" else [values])]
    dtypes = {array.dtype.name for array in arrays}
    if not dtypes <= set(spec.dtypes):
        raise ColumnError(
            f"column {name} is of type {', '.join(sorted(dtypes))}, it was declared {spec.dtype}"
        )
    axes = {array.ndim + (spec.per == "prompt") for array in arrays}
    if axes - {len(spec.shape)}:
        raise ColumnError(f"column {name} has {max(axes)} axes, it was declared [{', '.join(spec.shape)}]")
    if spec.per == "token" and spec.outside is not None:
        wrong = int((values[~block.loss_mask_T] != spec.outside).sum())
        if wrong:
            raise ColumnError(
                f"column {name} is not {spec.outside:g} at {wrong} tokens that are not trained on",
                fix=f"fill it with {spec.outside:g} where the loss mask is False",
            )


def _refuse_turns(block: TokenBlock) -> None:
    """Refuse turns that are not in order, and a trained token before the first turn of its trajectory."""
    start = block.columns[TURN_START]
    if (np.diff(start) <= 0).any() or (len(start) and not 0 <= start[0] <= start[-1] < block.start_N[-1]):
        raise ColumnError(f"{TURN_START} does not ascend within the {block.start_N[-1]} tokens of its block")
    at_U = np.flatnonzero(block.loss_mask_T)
    turn_U = _turn_of(at_U, start)
    first_U = block.start_N[np.searchsorted(block.start_N, at_U, side="right") - 1]
    if (turn_U < 0).any() or (start[turn_U] < first_U).any():
        raise ColumnError("a token is trained on before the first turn of its trajectory")


@dataclass(slots=True)
class Batch:
    """One policy update on the controller: metadata, scalars and references to token blocks."""

    step: int
    groups: list[Group]
    blocks: list[Any]
    """The distinct blocks of the groups: TokenBlocks, or opaque references to them."""

    block_N: np.ndarray
    """int64: index in `blocks` of the block that holds trajectory i."""

    row_N: np.ndarray
    """int64: row of trajectory i in its block."""

    group_N: np.ndarray
    """int64: index in `groups`; trajectories of a group are consecutive."""

    length_N: np.ndarray
    """int64: tokens of the trajectory, prompt included."""

    trained_N: np.ndarray
    """int64: tokens of the trajectory that are trained on."""

    score_N: np.ndarray
    """float32: outcome score."""

    reward_N: np.ndarray
    """float32: shaped score, which is the estimator's input."""

    advantage_N: np.ndarray | None = None
    """float32; None until the estimator has run, or if it runs on the trainer ranks."""

    scalars: dict[str, np.ndarray] = field(default_factory=dict)
    """Scalar columns for an estimator that runs on the trainer ranks, each [N] or [N, K]."""

    dropped_N: np.ndarray | None = None
    """bool: True for trajectories that are not trained on; None if all are trained on."""

    still_N: np.ndarray | None = None
    """bool: True for trajectories that change neither loss nor gradient, and need not be computed. They count
    in the denominators. None: all are computed."""

    oldest: PolicyVersion | None = None
    """Tokens of older versions are not trained on; None: tokens of all versions are."""

    stale_N: np.ndarray | None = None
    """int64: tokens of the trajectory that are not trained on because of `oldest`; None: there are none."""

    def __len__(self) -> int:
        return len(self.row_N)

    @property
    def trajectories(self) -> Iterator[Trajectory]:
        """All trajectories, in the order of the _N columns."""
        return (t for group in self.groups for t in group.trajectories)

    @classmethod
    def pack(cls, step: int, groups: Sequence[Group], *, oldest: PolicyVersion | None = None) -> "Batch":
        """Make a batch from scored groups.

        Args:
            oldest: leave out tokens of older versions. Their trajectories keep their rewards.

        Raises:
            ValueError: a trajectory has no reward yet.
        """
        found = [trajectory for group in groups for trajectory in group.trajectories]
        if unscored := [group for group in groups if any(t.reward is None for t in group.trajectories)]:
            raise ValueError(f"trajectory of {unscored[0].prompt.uid} has no reward")
        blocks = list({id(group.block): group.block for group in groups}.values())
        numbers = {id(block): number for number, block in enumerate(blocks)}
        count_G = np.array([len(group.trajectories) for group in groups], np.int64)
        score_N = np.array([t.reward for t in found], np.float32)
        trained_N = np.array([t.trained_tokens for t in found], np.int64)
        stale_N = None if oldest is None else _stale(found, oldest)
        return cls(
            step,
            list(groups),
            blocks,
            np.repeat(np.array([numbers[id(group.block)] for group in groups], np.int64), count_G),
            np.array([t.row for t in found], np.int64),
            np.repeat(np.arange(len(groups)), count_G),
            length_N=np.array([t.prompt_tokens + t.response_tokens for t in found], np.int64),
            trained_N=trained_N if stale_N is None else trained_N - stale_N,
            score_N=score_N,
            reward_N=score_N.copy(),
            oldest=oldest,
            stale_N=stale_N,
        )

    def for_ranks(self, minibatches: Sequence["Minibatch"]) -> "RankBatch":
        """The batch for trainer ranks, without blocks, which are sent separately."""
        return RankBatch(
            self.step,
            (),
            self.block_N,
            self.row_N,
            self.group_N,
            self.reward_N,
            self.advantage_N,
            tuple(minibatches),
            self.scalars,
            self.oldest,
            hints_of(self.groups),
        )


def _stale(found: Sequence[Trajectory], oldest: PolicyVersion) -> np.ndarray:
    """Tokens of each trajectory that versions before `oldest` sampled; int64 [N]."""
    stale_N = np.zeros(len(found), np.int64)
    for n, trajectory in enumerate(found):
        if trajectory.version < oldest:
            spans = trajectory.spans or ((trajectory.version, trajectory.trained_tokens),)
            stale_N[n] = sum(count for version, count in spans if version < oldest)
    return stale_N


@dataclass(frozen=True, slots=True)
class Minibatch:
    """The trajectories of one optimizer step, partitioned over ranks and microbatches."""

    index: int
    """Index among the minibatches of the batch, over all epochs."""

    rows: tuple[tuple[tuple[int, ...], ...], ...]
    """rows[data-parallel rank][microbatch]: indices of trajectories in the batch. Every rank has the same
    number of microbatches."""

    num_tokens: int
    """Trained tokens of the whole minibatch: the denominator of token means, on every rank."""

    num_sequences: int
    """Trajectories of the whole minibatch that have a trained token: the denominator of sequence means."""

    computed_tokens: int | None = None
    """Trained tokens of the trajectories in `rows`, if others of the minibatch are not computed. None: `rows`
    has all."""

    idle_share: float = 0.0
    """Estimated fraction of the ranks' time spent waiting for the busiest rank."""


@dataclass(frozen=True, slots=True)
class RankBatch:
    """The batch that every trainer rank receives: scalars in full, tokens by reference."""

    step: int
    blocks: tuple[TokenBlock, ...]
    block_N: np.ndarray
    row_N: np.ndarray
    group_N: np.ndarray
    reward_N: np.ndarray
    advantage_N: np.ndarray | None
    minibatches: tuple[Minibatch, ...] = ()
    scalars: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Scalar columns, as in Batch.scalars."""

    oldest: PolicyVersion | None = None
    """Tokens of older versions are not trained on, as in Batch."""

    hints: tuple[Hint, ...] | None = None
    """Hint of each group; None: a prompt has none."""

    def with_blocks(self, blocks: Iterable[TokenBlock]) -> "RankBatch":
        """The same batch with these blocks, without tokens of versions before `oldest` in their loss masks.
        Blocks are not copied, except those with such tokens."""
        oldest = self.oldest
        given = blocks if oldest is None else (block.without_older(oldest) for block in blocks)
        return replace(self, blocks=tuple(given))
