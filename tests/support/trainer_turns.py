"""Episodes of several turns on trainer ranks: the advantages that a loss receives, and the same by plain
Python over lists.

Shape letters: N trajectories.
"""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, ClassVar

import numpy as np
import trainer_scenarios as scenarios
import trainer_values as values
from torch import Tensor

from hybridrl.algorithms.base import TokenLoss, Tokens, register_policy_loss
from hybridrl.batch import Batch, RankBatch, TokenBlock
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.types import Group, Prompt, Trajectory

COUNT = 12
"""Trajectories: three groups of four, the two roles of an episode one after the other."""

SEEN: list[tuple[list[float], list[float]]] = []
"""(rollout_logp, advantage) of every call of the loss in this process; the first names the token."""

ALGORITHMS: dict[str, dict[str, Any]] = {
    "step_reinforce": {"estimator": {"name": "step_reinforce", "discount": 0.9}},
    "step_reinforce over turns": {"estimator": {"name": "step_reinforce", "over": "turn"}},
    "gigpo": {"estimator": {"name": "gigpo", "discount": 0.9}},
    "rae": {"estimator": {"name": "rae", "decay": 0.8}},
    "hierarchical_grpo": {"estimator": {"name": "hierarchical_grpo", "episode_agents": [1]}},
    "relative_length": {
        "estimator": {"name": "dr_grpo"},
        "shaping": [{"name": "relative_length", "turns": 0.5}],
    },
}


@register_policy_loss("seen_loss")
class SeenLoss:
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "rollout_logp"})

    def __call__(
        self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor, rollout_logp_T: Tensor
    ) -> TokenLoss:
        SEEN.append((rollout_logp_T.tolist(), advantage_T.tolist()))
        return TokenLoss(-(logp_T - old_logp_T).exp() * advantage_T)


def episodes() -> tuple[TokenBlock, list[Trajectory]]:
    """A block with one to four turns in each row and untrained tokens between them, and its trajectories.
    Row 7 is an episode that failed: no turn."""
    draw = np.random.default_rng(3)
    tokens, mask, turn_start, turn, anchor, reward, start = [], [], [], [], [], [], [0]
    found = []
    for row in range(COUNT):
        prompt, turns, earned = int(draw.integers(2, 5)), int(draw.integers(1, 5)) * (row != 7), 0.0
        mask += [False] * prompt
        reward += [0.0] * prompt
        for k in range(turns):
            length, between = int(draw.integers(1, 4)), int(draw.integers(0, 3)) * (k + 1 < turns)
            turn_start.append(len(mask))
            turn.append(k)
            anchor.append(int(draw.integers(0, 3)))
            mask += [True] * length + [False] * between
            own = float(np.float32(draw.normal()))
            reward += [0.0] * (length - 1) + [own] + [0.0] * between
            earned += own
        start.append(len(mask))
        trained = sum(mask[start[row] :])
        whole = earned + float(np.float32(draw.normal()))
        found.append(
            Trajectory(
                row,
                prompt,
                start[-1] - start[-2] - prompt,
                trained,
                "stop",
                0,
                whole,
                turns=turns,
                turn_reward=earned,
                ended="done" if turns else "failed",
                agent=row % 2,
                episode=row % 4 // 2,
            )
        )
    count = len(mask)
    mask_T = np.array(mask)
    tokens = draw.integers(0, values.VOCAB, count)
    columns = {
        "rollout_logp": np.where(mask_T, -(np.arange(count) + 1) / 1024, 0).astype(np.float32),
        "version": np.where(mask_T, 0, -1).astype(np.int32),
        "turn_reward": np.array(reward, np.float32),
        "turn_start": np.array(turn_start, np.int64),
        "turn": np.array(turn, np.int64),
        "anchor": np.array(anchor, np.int64),
    }
    prompts = np.array([t.prompt_tokens for t in found], np.int32)
    return TokenBlock(tokens.astype(np.int32), np.array(start, np.int64), prompts, mask_T, columns), found


def batch_of(algorithm: AlgorithmConfig, dp: int) -> RankBatch:
    """The batch as the controller makes it of groups, for two optimizer steps."""
    from hybridrl.controller.advantage import load_credit
    from hybridrl.trainer.saved_groups import select

    block, found = episodes()
    blocks = select(block, range(0, 6)), select(block, range(6, COUNT))
    groups = []
    for first in range(0, COUNT, 4):
        prompt = Prompt(f"train/{first}", (1,), {})
        parts = found[first : first + 4]
        if first == 4:  # a group lies in one block; this one is in neither: it gets its own
            own = select(block, range(4, 8))
            groups.append(Group(prompt, [replace(t, row=i) for i, t in enumerate(parts)], own))
        else:
            where = blocks[first > 4]
            groups.append(Group(prompt, [replace(t, row=t.row % 6) for t in parts], where))
    batch = Batch.pack(1, groups)
    load_credit(algorithm)(batch)
    cuts = [scenarios.split(i, dp, (6,)) for i in range(2)]
    trained = int(block.loss_mask_T.sum())
    minibatches = [replace(m, num_tokens=trained, num_sequences=COUNT - 1) for m in cuts]
    return batch.for_ranks(minibatches).with_blocks(batch.blocks)


def advantages(
    rank: int,
    rendezvous: scenarios.Rendezvous,
    folder: Path,
    shape: scenarios.Shape,
    backend: str = "megatron",
) -> dict[str, dict[str, Any]]:
    """For each algorithm: {rollout_logp: advantage} of the tokens that the loss saw, and the reports."""
    actor = values.make_actor().model_copy(update={"backend": backend})
    found = {}
    for name, choices in ALGORITHMS.items():
        algorithm = AlgorithmConfig.model_validate(
            {**choices, "loss": "trainer_turns:SeenLoss", "guards": "off"}
        )
        SEEN.clear()
        with scenarios.policy(rank, rendezvous, folder, shape, actor=actor, algorithm=algorithm) as trained:
            reports = scenarios.play(trained, batch_of(algorithm, scenarios.dp_of(shape)))["reports"]
        seen = {logp: value for logps, advantage in SEEN for logp, value in zip(logps, advantage)}
        found[name] = {"seen": seen, "losses": [(r["loss"], r["grad_norm"]) for r in reports]}
    return found


# The same by plain Python


def reward_of(trajectory: Trajectory) -> float:
    assert trajectory.reward is not None
    return trajectory.reward


def expected(name: str) -> dict[float, float]:
    """{rollout_logp: advantage} of every trained token."""
    block, found = episodes()
    per_row = _ORACLES[name](block, found)
    out = {}
    for row, values_of_turns in enumerate(per_row):
        where = block.row(row)
        for at in range(where.start, where.stop):
            if block.loss_mask_T[at]:
                turn = _turn_at(block, at)
                out[float(block.columns["rollout_logp"][at])] = values_of_turns[turn]
    return out


def _turn_at(block: TokenBlock, at: int) -> int:
    index = max(i for i, start in enumerate(block.columns["turn_start"]) if start <= at)
    return int(block.columns["turn"][index])


def _turns(block: TokenBlock, found: list[Trajectory]) -> list[list[tuple[float, int]]]:
    """(reward, anchor) of each turn of each trajectory; what no turn earned is the last one's."""
    rows = []
    for trajectory in found:
        where, own = block.row(trajectory.row), []
        starts = [s for s in block.columns["turn_start"].tolist() if where.start <= s < where.stop]
        for begin, end in zip(starts, [*starts[1:], where.stop]):
            index = block.columns["turn_start"].tolist().index(begin)
            earned = float(block.columns["turn_reward"][begin:end].sum())
            own.append((earned, int(block.columns["anchor"][index])))
        if own:
            rest = reward_of(trajectory) - sum(r for r, _ in own)
            own[-1] = (own[-1][0] + rest, own[-1][1])
        rows.append(own)
    return rows


def _normalised(cells: dict[tuple, list[tuple[tuple[int, int], float]]]) -> dict[tuple[int, int], float]:
    out = {}
    for members in cells.values():
        returns = [value for _, value in members]
        spread = stdev(returns) if len(returns) > 1 else 0.0
        for place, value in members:
            out[place] = (value - mean(returns)) / (spread + 1e-6) if spread > 1e-6 else 0.0
    return out


def _by_turn(key: Any, discount: float) -> Any:
    def oracle(block: TokenBlock, found: list[Trajectory]) -> list[list[float]]:
        rows, cells = _turns(block, found), defaultdict(list)
        for n, own in enumerate(rows):
            total = 0.0
            for k in reversed(range(len(own))):
                total = own[k][0] + discount * total
                cells[key(n // 4, k, own[k][1])].append(((n, k), total))
        value = _normalised(cells)
        return [[value[n, k] for k in range(len(own))] for n, own in enumerate(rows)]

    return oracle


def _grpo(found: list[Trajectory]) -> list[float]:
    groups = [[reward_of(t) for t in found[g : g + 4]] for g in range(0, COUNT, 4)]
    return [
        (reward_of(t) - mean(groups[n // 4])) / (stdev(groups[n // 4]) + 1e-6) for n, t in enumerate(found)
    ]


def _gigpo(block: TokenBlock, found: list[Trajectory]) -> list[list[float]]:
    turns = _by_turn(lambda g, k, anchor: (g, anchor), 0.9)(block, found)
    outcome = _grpo(found)
    return [[outcome[n] + value for value in own] for n, own in enumerate(turns)]


def _whole(per_trajectory: Any) -> Any:
    def oracle(block: TokenBlock, found: list[Trajectory]) -> list[list[float]]:
        return [[value] * t.turns for value, t in zip(per_trajectory(found), found, strict=True)]

    return oracle


def _rae(found: list[Trajectory]) -> list[float]:
    baseline, out = {0: 0.0, 1: 0.0}, []
    for t in found:
        out.append(reward_of(t) - baseline[t.agent])
        baseline[t.agent] = 0.8 * baseline[t.agent] + 0.2 * reward_of(t)
    return out


def _hierarchical(found: list[Trajectory]) -> list[float]:
    def peers(n: int) -> list[float]:
        own = found[n]
        return [
            reward_of(t)
            for m, t in enumerate(found)
            if m // 4 == n // 4 and t.agent == own.agent and (own.agent != 1 or t.episode == own.episode)
        ]

    return [reward_of(t) - mean(peers(n)) for n, t in enumerate(found)]


def _relative(found: list[Trajectory]) -> list[float]:
    shaped = []
    for n, t in enumerate(found):
        group = found[n // 4 * 4 : n // 4 * 4 + 4]
        share = 0.5 * t.turns / max(1, *(g.turns for g in group))
        shaped.append(reward_of(t) - mean(reward_of(g) for g in group) * share)
    return [s - mean(shaped[n // 4 * 4 : n // 4 * 4 + 4]) for n, s in enumerate(shaped)]


_ORACLES = {
    "step_reinforce": _by_turn(lambda g, k, anchor: (g,), 0.9),
    "step_reinforce over turns": _by_turn(lambda g, k, anchor: (g, k), 1.0),
    "gigpo": _gigpo,
    "rae": _whole(_rae),
    "hierarchical_grpo": _whole(_hierarchical),
    "relative_length": _whole(_relative),
}
