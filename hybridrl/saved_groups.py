"""The open groups of a checkpoint: finished ones as arrays and token blocks, the others by their index.

Shape letters: G finished groups, N their trajectories, S spans of their versions, P named parts of rewards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np

from hybridrl.types import Ended, Finish, Group, Prompt, Trajectory

_FINISHES: tuple[Finish, ...] = get_args(Finish)
_ENDED: tuple[Ended | None, ...] = (
    None,
    "done",
    "max_turns",
    "max_tokens",
    "overflow",
    "failed",
    "deadline",
)
"""In the order in which checkpoints number them: a new one comes last."""

_INTEGERS = ("row", "prompt_tokens", "response_tokens", "trained_tokens", "version", "turns")
"""Fields of a trajectory that are kept as they are."""

_ROLES = ("agent", "episode", "branch")
"""Further ones, which checkpoints of version 0.1 lack: 0 for all trajectories."""


@dataclass(frozen=True, slots=True)
class SavedGroups:
    """What a checkpoint keeps of open groups."""

    unfinished: tuple[int, ...] = ()
    """Indices of the groups that start again from their prompts and seeds."""

    parts: tuple[str, ...] = ()
    """Names of the parts of rewards."""

    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Scalars of the finished groups."""

    blocks: tuple[Any, ...] = ()
    """Token blocks of the finished groups, or references to them."""

    @property
    def indices(self) -> list[int]:
        """Indices of the finished groups, in the order in which they ended."""
        return self.columns["index_G"].tolist() if self.columns else []

    @property
    def facts(self) -> dict[str, Any]:
        """The part of it that goes into the record of a checkpoint, as JSON."""
        return {"unfinished": list(self.unfinished), "parts": list(self.parts)}

    def groups(self, prompts: Mapping[int, Prompt]) -> list[Group]:
        """The finished groups.

        Args:
            prompts: prompt of each index.
        """
        if not self.columns:
            return []
        made = iter(self._trajectories())
        groups = []
        for g, index in enumerate(self.indices):
            members = [next(made) for _ in range(int(self.columns["count_G"][g]))]
            group = Group(prompts[index], members, self.blocks[self.columns["block_G"][g]], index=index)
            greedy = float(self.columns["greedy_reward_G"][g])
            group.greedy_reward = None if np.isnan(greedy) else greedy
            groups.append(group)
        return groups

    def _trajectories(self) -> list[Trajectory]:
        none = np.zeros(len(self.columns["reward_N"]), np.int64)
        absent = {f"{name}_N": none.tolist() for name in (*_ROLES, "turn_reward", "ended")}
        columns: dict[str, Any] = absent | {name: values.tolist() for name, values in self.columns.items()}
        spans, at = list(zip(columns["span_version_S"], columns["span_count_S"], strict=True)), 0
        found = []
        for n, reward in enumerate(columns["reward_N"]):
            count = columns["num_spans_N"][n]
            parts = zip(self.parts, columns["parts_NP"][n], strict=True)
            integers: dict[str, Any] = {name: columns[f"{name}_N"][n] for name in (*_INTEGERS, *_ROLES)}
            found.append(
                Trajectory(
                    finish=_FINISHES[columns["finish_N"][n]],
                    reward=reward,
                    reward_parts={name: value for name, value in parts if not np.isnan(value)},
                    spans=tuple(spans[at : at + count]),
                    turn_reward=float(columns["turn_reward_N"][n]),
                    ended=_ENDED[columns["ended_N"][n]],
                    **integers,
                )
            )
            at += count
        return found


def pack_groups(finished: Sequence[Group], unfinished: Sequence[int]) -> SavedGroups:
    """
    Args:
        finished: scored groups, in the order in which they ended.
        unfinished: indices of the other open groups.
    """
    if not finished:
        return SavedGroups(tuple(unfinished))
    members = [trajectory for group in finished for trajectory in group.trajectories]
    names = sorted({name for trajectory in members for name in trajectory.reward_parts})
    blocks = {id(group.block): group.block for group in finished}
    numbers = {key: number for number, key in enumerate(blocks)}
    greedy = [np.nan if group.greedy_reward is None else group.greedy_reward for group in finished]
    spans = [span for trajectory in members for span in trajectory.spans]
    parts = [[t.reward_parts.get(name, np.nan) for name in names] for t in members]
    columns = {
        "index_G": np.array([group.index for group in finished], np.int64),
        "count_G": np.array([len(group.trajectories) for group in finished], np.int64),
        "block_G": np.array([numbers[id(group.block)] for group in finished], np.int64),
        "block_N": np.array(
            [numbers[id(group.block)] for group in finished for _ in group.trajectories], np.int64
        ),
        "greedy_reward_G": np.array(greedy, np.float64),
        **{
            f"{name}_N": np.array([getattr(t, name) for t in members], np.int64)
            for name in (*_INTEGERS, *_ROLES)
        },
        "turn_reward_N": np.array([t.turn_reward for t in members], np.float64),
        "ended_N": np.array([_ENDED.index(t.ended) for t in members], np.int64),
        "finish_N": np.array([_FINISHES.index(t.finish) for t in members], np.int64),
        "reward_N": np.array([t.reward for t in members], np.float64),
        "num_spans_N": np.array([len(t.spans) for t in members], np.int64),
        "span_version_S": np.array([version for version, _ in spans], np.int64),
        "span_count_S": np.array([count for _, count in spans], np.int64),
        "parts_NP": np.array(parts, np.float64).reshape(len(members), len(names)),
    }
    return SavedGroups(tuple(unfinished), tuple(names), columns, tuple(blocks.values()))
