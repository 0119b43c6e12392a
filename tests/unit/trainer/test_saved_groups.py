"""Groups that a checkpoint keeps come back with their scores and tokens, and with those of no other group."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from hybridrl.batch import TokenBlock
from hybridrl.saved_groups import SavedGroups, pack_groups
from hybridrl.trainer import saved_groups
from hybridrl.types import Group, Prompt, Trajectory

PROMPTS = {index: Prompt(f"train/{index}", (index,), {}) for index in range(9)}


def block(first: int, count: int) -> TokenBlock:
    """Answer i has i + 1 tokens, all of them first + i."""
    answers = [[first + i] * (i + 1) for i in range(count)]
    logps = [[-0.5 * (i + 1)] * (i + 1) for i in range(count)]
    return TokenBlock.from_answers([(7,)] * count, answers, logps, 3)


def trajectory(row: int, reward: float, **more) -> Trajectory:
    return Trajectory(row, 1, row + 1, row + 1, "stop", 3, reward, **more)


def groups() -> list[Group]:
    """Two groups of one block, which has a row of neither, and one of another block."""
    shared, other = block(10, 5), block(20, 1)
    played = {"turns": 2, "turn_reward": 0.25, "ended": "max_turns", "agent": 1, "episode": 3}
    mixed = trajectory(4, 0.5, spans=((3, 2), (4, 3)), reward_parts={"format": 1.0}, **played)
    return [
        Group(PROMPTS[5], [trajectory(1, 0.0), mixed], shared, index=5),
        Group(PROMPTS[2], [replace(trajectory(0, 1.0), finish="length")], other, index=2, greedy_reward=0.25),
        Group(PROMPTS[3], [trajectory(3, -1.0), trajectory(0, 0.1)], shared, index=3),
    ]


def restored(folder: Path, found: list[Group]) -> tuple[SavedGroups, list[Group]]:
    packed = pack_groups(found, [7, 8])
    saved_groups.write(folder, packed.columns, packed.blocks)
    columns, blocks = saved_groups.read(folder)
    again = SavedGroups(
        tuple(packed.facts["unfinished"]), tuple(packed.facts["parts"]), columns, tuple(blocks)
    )
    return again, again.groups(PROMPTS)


def test_groups_come_back_as_they_were(tmp_path: Path) -> None:
    first = groups()
    again, found = restored(tmp_path, first)
    assert again.unfinished == (7, 8) and again.indices == [5, 2, 3]
    for old, new in zip(first, found, strict=True):
        assert (new.prompt, new.index, new.greedy_reward) == (old.prompt, old.index, old.greedy_reward)
        for before, after in zip(old.trajectories, new.trajectories, strict=True):
            assert replace(after, row=0) == replace(before, row=0)
            was, now = old.block.row(before.row), new.block.row(after.row)
            assert new.block.token_T[now].tolist() == old.block.token_T[was].tolist()
            for name, values in old.block.columns.items():
                assert np.array_equal(new.block.columns[name][now], values[was])


def test_tokens_of_other_groups_are_not_written(tmp_path: Path) -> None:
    _, found = restored(tmp_path, groups())
    assert [len(group.block) for group in found] == [4, 1, 4]


def test_no_finished_group_writes_no_file(tmp_path: Path) -> None:
    assert saved_groups.read(tmp_path) == ({}, [])
    empty = pack_groups([], [1])
    assert not empty.columns and empty.groups(PROMPTS) == [] and empty.indices == []


def test_turns_come_back_with_their_trajectories(tmp_path: Path) -> None:
    plain = block(10, 3)
    turns = {
        "turn_start": np.array([1, 3, 4, 6, 8], np.int64),  # rows of 2, 3 and 4 tokens
        "turn": np.array([0, 0, 1, 0, 1], np.int64),
        "anchor": np.array([5, 6, 7, 8, 9], np.int64),
        "turn_reward": np.where(plain.loss_mask_T, 0.5, 0).astype(np.float32),
    }
    whole = replace(plain, columns={**plain.columns, **turns})
    _, (group,) = restored(
        tmp_path, [Group(PROMPTS[5], [trajectory(2, 0.0), trajectory(1, 1.0)], whole, index=5)]
    )
    kept = {t.row: group.block.trained("anchor")[: t.trained_tokens] for t in group.trajectories}
    assert group.block.trained("anchor").tolist() == [8, 8, 9, 6, 7]
    assert group.block.trained("turn").tolist() == [0, 0, 1, 0, 1] and len(kept) == 2


def test_groups_of_a_checkpoint_without_roles(tmp_path: Path) -> None:
    packed = pack_groups(groups(), [])
    older = ("agent_N", "episode_N", "turn_reward_N", "ended_N")
    columns = {name: values for name, values in packed.columns.items() if name not in older}
    found = SavedGroups((), packed.parts, columns, packed.blocks).groups(PROMPTS)
    assert {(t.agent, t.episode, t.ended) for g in found for t in g.trajectories} == {(0, 0, None)}
