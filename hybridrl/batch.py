"""Token blocks of trajectories, and the batch of one policy update.

Shape letters: N trajectories, T tokens of all trajectories end to end (prompt and response), U those of them
that are trained on, M turns, G groups, L layers of the model, K experts that a token goes to.
A column per token is aligned with the token it describes: logp[t] is the log-probability of token t given the
tokens before it in its own trajectory. columns.py declares every column that a block may carry.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hybridrl.columns import COLUMNS, TURN_START, ColumnSpec, spec_of
from hybridrl.errors import ColumnError
from hybridrl.types import Group, Trajectory


@dataclass(frozen=True, slots=True)
class TokenBlock:
    """What one engine call produced: ragged columns, read without a copy from the object store."""

    token_T: np.ndarray
    """int32"""

    start_N: np.ndarray
    """int64 [N + 1]: trajectory i holds tokens start_N[i] to start_N[i + 1]."""

    prompt_tokens_N: np.ndarray
    """int32: how many of its first tokens are the prompt."""

    loss_mask_T: np.ndarray
    """bool: True at tokens that the policy generated."""

    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What else it carries, by the names of columns.py. Per token: [T, ...]. Per turn: [M, ...], with
    turn_start beside it. Per prompt: object [N], each entry the array of that trajectory's prompt, the same
    object for all samples of a prompt, which a block then holds and sends once."""

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: lengths differ.
            ColumnError: a column was not declared, or is not as it was declared.
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
        """The tokens of trajectory `index`, as a slice of every column per token."""
        return slice(int(self.start_N[index]), int(self.start_N[index + 1]))

    def column(self, name: str) -> np.ndarray:
        """
        Raises:
            ColumnError: the block does not carry it.
        """
        if name not in self.columns:
            raise ColumnError(
                f"tokens came without column {name}, with {', '.join(sorted(self.columns)) or 'none'}",
                where="it is needed on trainer ranks",
                fix="leave out what needs it, or have whoever plays the trajectories give it",
            )
        return self.columns[name]

    def trained(self, name: str) -> np.ndarray:
        """A column at the tokens that are trained on, [U, ...]; if it is per turn, that of each token's turn.

        Raises:
            ColumnError: the block does not carry it, or it has no value per token.
        """
        values = self.column(name)
        per = COLUMNS[name].per
        if per == "token":
            return values[self.loss_mask_T]
        if per == "turn":
            return values[_turn_of(np.flatnonzero(self.loss_mask_T), self.columns[TURN_START])]
        raise ColumnError(f"column {name} is per {per} and has no values at tokens")

    @classmethod
    def from_answers(
        cls,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        logps: Sequence[Sequence[float]],
        version: int,
        *,
        experts: Sequence[np.ndarray] | None = None,
    ) -> "TokenBlock":
        """Single-turn answers: every response token is trained on.

        Args:
            prompts, responses, logps: per trajectory; a response and its logps have equal length.
            version: the policy version that sampled all of them.
            experts: int [tokens of the trajectory but the last, L, K].
        """
        prompt_tokens_N = np.array([len(p) for p in prompts], np.int32)
        response_tokens_N = np.array([len(r) for r in responses], np.int32)
        start_N = np.concatenate([[0], np.cumsum(prompt_tokens_N + response_tokens_N, dtype=np.int64)])
        token_T = np.empty(start_N[-1], np.int32)
        logp_T = np.zeros(start_N[-1], np.float32)
        mask_T = np.zeros(start_N[-1], bool)
        for i, (prompt, response, logp) in enumerate(zip(prompts, responses, logps, strict=True)):
            at = int(start_N[i])
            middle, end = at + len(prompt), int(start_N[i + 1])
            token_T[at:middle], token_T[middle:end] = prompt, response
            logp_T[middle:end], mask_T[middle:end] = logp, True
        columns = {"rollout_logp": logp_T, "version": np.where(mask_T, np.int32(version), np.int32(-1))}
        if experts is not None:
            columns["experts"] = _end_to_end(experts, start_N)
        return cls(token_T, start_N, prompt_tokens_N, mask_T, columns)


def spans(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """start[0], start[0] + 1, ... (length[0] of them), start[1], ..."""
    offset = np.cumsum(length) - length
    return np.arange(length.sum()) + np.repeat(start - offset, length)


def _turn_of(at_U: np.ndarray, turn_start: np.ndarray) -> np.ndarray:
    """Which turn each token is in: the last that begins with it or before."""
    return np.searchsorted(turn_start, at_U, side="right") - 1


def _refuse_misfit(block: TokenBlock, name: str, spec: ColumnSpec, values: np.ndarray) -> None:
    """What a column of a block must be by its row of the table."""
    if spec.per == "trajectory":
        raise ColumnError(f"column {name} is per trajectory, which token blocks do not carry")
    if spec.per == "turn" and TURN_START not in block.columns:
        raise ColumnError(f"column {name} is per turn, and {TURN_START} is not beside it")
    count = {
        "token": len(block.token_T),
        "prompt": len(block),
        "turn": len(block.columns.get(TURN_START, ())),
    }
    if len(values) != count[spec.per]:
        raise ColumnError(
            f"column {name} has {len(values)} values, one per {spec.per} makes {count[spec.per]}"
        )
    if spec.per == "prompt" and values.dtype != object:
        raise ColumnError(
            f"column {name} is one array of all prompts, and samples of one could not share theirs",
            fix="an array of type object, each entry the array of one trajectory's prompt",
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
    """Turns that are not in order, or a trained token that is in none of its own trajectory."""
    start = block.columns[TURN_START]
    if (np.diff(start) <= 0).any() or (len(start) and not 0 <= start[0] <= start[-1] < block.start_N[-1]):
        raise ColumnError(f"{TURN_START} does not ascend within the {block.start_N[-1]} tokens of its block")
    at_U = np.flatnonzero(block.loss_mask_T)
    turn_U = _turn_of(at_U, start)
    first_U = block.start_N[np.searchsorted(block.start_N, at_U, side="right") - 1]
    if (turn_U < 0).any() or (start[turn_U] < first_U).any():
        raise ColumnError("a token is trained on before the first turn of its trajectory")


def _end_to_end(experts: Sequence[np.ndarray], start_N: np.ndarray) -> np.ndarray:
    """Of all trajectories, in the smallest integers."""
    largest = max((int(found.max(initial=0)) for found in experts), default=0)
    dtype = np.uint8 if largest < np.iinfo(np.uint8).max else np.uint16
    shape = experts[0].shape[1:] if experts else (0, 0)
    experts_TLK = np.full((start_N[-1], *shape), np.iinfo(dtype).max, dtype)
    for start, end, found in zip(start_N, start_N[1:], experts, strict=False):
        if len(found) != end - start - 1:
            raise ValueError(f"experts of {len(found)} tokens for a trajectory of {end - start}")
        experts_TLK[start : end - 1] = found
    return experts_TLK


@dataclass(slots=True)
class Batch:
    """One policy update on the controller: metadata, scalars and references to token blocks."""

    step: int
    groups: list[Group]
    blocks: list[Any]
    """Distinct blocks that the groups refer to: TokenBlocks, or opaque references to them."""

    block_N: np.ndarray
    """int64: which block holds trajectory i ..."""

    row_N: np.ndarray
    """int64: ... and which row of it."""

    group_N: np.ndarray
    """int64: index into `groups`; members of a group are neighbours."""

    length_N: np.ndarray
    """int64: tokens of the trajectory, prompt included."""

    trained_N: np.ndarray
    """int64: tokens of the trajectory that are trained on."""

    score_N: np.ndarray
    """float32: the outcome, as it was scored."""

    reward_N: np.ndarray
    """float32: what the estimator sees, the shaped score."""

    advantage_N: np.ndarray | None = None
    """float32; None until the estimator ran, or when it yields one value per token on the trainer ranks."""

    scalars: dict[str, np.ndarray] = field(default_factory=dict)
    """Scalar columns for an estimator that runs on the trainer ranks, each [N] or [N, K]."""

    dropped_N: np.ndarray | None = None
    """bool: not trained on; None: every trajectory is."""

    def __len__(self) -> int:
        return len(self.row_N)

    @property
    def trajectories(self) -> Iterator[Trajectory]:
        """In the order of the _N columns."""
        return (t for group in self.groups for t in group.trajectories)

    @classmethod
    def pack(cls, step: int, groups: Sequence[Group]) -> "Batch":
        """Line up the trajectories of scored groups.

        Raises:
            ValueError: a trajectory has no reward yet.
        """
        blocks, index, block_N, row_N, group_N, found = [], {}, [], [], [], []
        for g, group in enumerate(groups):
            block = index.setdefault(id(group.block), len(blocks))
            if block == len(blocks):
                blocks.append(group.block)
            for trajectory in group.trajectories:
                if trajectory.reward is None:
                    raise ValueError(f"trajectory of {group.prompt.uid} has no reward")
                block_N.append(block)
                row_N.append(trajectory.row)
                group_N.append(g)
                found.append(trajectory)
        return cls(
            step,
            list(groups),
            blocks,
            np.array(block_N, np.int64),
            np.array(row_N, np.int64),
            np.array(group_N, np.int64),
            length_N=np.array([t.prompt_tokens + t.response_tokens for t in found], np.int64),
            trained_N=np.array([t.trained_tokens for t in found], np.int64),
            score_N=np.array([t.reward for t in found], np.float32),
            reward_N=np.array([t.reward for t in found], np.float32),
        )

    def for_ranks(self, minibatches: Sequence["Minibatch"]) -> "RankBatch":
        """Its scalars, for ranks that get its blocks beside it."""
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
        )


@dataclass(frozen=True, slots=True)
class Minibatch:
    """One optimizer step: which trajectories of the loaded batch, and how ranks and microbatches share it."""

    index: int
    """Position among the minibatches of its batch, over all epochs."""

    rows: tuple[tuple[tuple[int, ...], ...], ...]
    """rows[data-parallel rank][microbatch]: indices into the batch; every rank has the same number of
    microbatches."""

    num_tokens: int
    """Trained tokens of the whole minibatch: the denominator of token means, on every rank."""

    num_sequences: int

    idle_share: float = 0.0
    """Share of the ranks' time in which they wait for the busiest one, by what their sequences cost."""


@dataclass(frozen=True, slots=True)
class RankBatch:
    """A batch as every trainer rank receives it: scalars in full, tokens by reference. Nobody changes it."""

    step: int
    blocks: tuple[TokenBlock, ...]
    block_N: np.ndarray
    row_N: np.ndarray
    group_N: np.ndarray
    reward_N: np.ndarray
    advantage_N: np.ndarray | None
    minibatches: tuple[Minibatch, ...] = ()
    scalars: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Those of Batch.scalars."""

    def with_blocks(self, blocks: Iterable[TokenBlock]) -> "RankBatch":
        """The same batch over these blocks: they arrive beside the scalars, and are not copied."""
        return replace(self, blocks=tuple(blocks))
