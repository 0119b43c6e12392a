"""Token columns of trajectories, and the batch of one policy update.

Shape letters: N trajectories, T tokens of all trajectories end to end (prompt and response), G groups, L
layers of the model, K experts that a token goes to.
A per-token column is aligned with the token it describes: logp[t] is the log-probability of token t given the
tokens before it in its own trajectory, and is 0 where the loss mask is 0.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

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

    rollout_logp_T: np.ndarray
    """float32: as the engine sampled it, at the sampling temperature; 0 where loss_mask_T is 0."""

    loss_mask_T: np.ndarray
    """bool: True at tokens that the policy generated."""

    version_T: np.ndarray
    """int32: policy version that generated the token; -1 where loss_mask_T is False."""

    experts_TLK: np.ndarray | None = None
    """Experts that the engine sent the token to; uint8 or uint16, whose largest number says that the engine
    did not run the token, as the last one of a trajectory. None: nobody asked."""

    def __post_init__(self) -> None:
        total = int(self.start_N[-1])
        for column in ("token_T", "rollout_logp_T", "loss_mask_T", "version_T", "experts_TLK"):
            values = getattr(self, column)
            if values is not None and len(values) != total:
                raise ValueError(f"{column} has {len(getattr(self, column))} tokens, start_N says {total}")
        if len(self.prompt_tokens_N) != len(self):
            raise ValueError(f"{len(self.prompt_tokens_N)} prompt lengths for {len(self)} trajectories")

    def __len__(self) -> int:
        return len(self.start_N) - 1

    def row(self, index: int) -> slice:
        """The tokens of trajectory `index`, as a slice of every _T column."""
        return slice(int(self.start_N[index]), int(self.start_N[index + 1]))

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
        version_T = np.where(mask_T, np.int32(version), np.int32(-1))
        experts_TLK = None if experts is None else _end_to_end(experts, start_N)
        return cls(token_T, start_N, prompt_tokens_N, logp_T, mask_T, version_T, experts_TLK)

    def select(self, rows: Sequence[int]) -> "TokenBlock":
        """The given trajectories, in the given order, as a block of its own (a copy)."""
        pick = np.concatenate(
            [np.arange(*self.row(i).indices(len(self.token_T))) for i in rows] or [np.zeros(0, int)]
        )
        length_N = np.diff(self.start_N)[list(rows)]
        columns = {f.name: getattr(self, f.name)[pick] for f in fields(self) if f.name.endswith("_T")}
        if self.experts_TLK is not None:
            columns["experts_TLK"] = self.experts_TLK[pick]
        start_N = np.concatenate([[0], np.cumsum(length_N, dtype=np.int64)])
        return TokenBlock(start_N=start_N, prompt_tokens_N=self.prompt_tokens_N[list(rows)], **columns)


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
    """A batch as every trainer rank receives it: scalars in full, tokens by reference."""

    step: int
    blocks: list[TokenBlock]
    block_N: np.ndarray
    row_N: np.ndarray
    group_N: np.ndarray
    reward_N: np.ndarray
    advantage_N: np.ndarray | None
    minibatches: tuple[Minibatch, ...] = ()
    scalars: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Those of Batch.scalars."""

    def trajectory(self, index: int) -> tuple[TokenBlock, slice]:
        """The block of trajectory `index` and where its tokens are in it."""
        block = self.blocks[int(self.block_N[index])]
        return block, block.row(int(self.row_N[index]))
