"""Credit assignment of a policy update: shaped rewards, advantages, and the checks between them.

An estimator that needs only scalars runs here; one that needs other columns runs on the trainer ranks.
Columns that nobody computes are refused before the run.
Shape letters: N trajectories, K parts of the reward.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.base import AdvantageEstimator
from hybridrl.algorithms.columns import SCALAR_COLUMNS, Column, argument, on_ranks
from hybridrl.algorithms.guards import Finding, check_centred, check_groups, check_length_correlation, stop
from hybridrl.algorithms.rules import credit_errors
from hybridrl.algorithms.shaping_chain import ShapingChain, load_shaping
from hybridrl.algorithms.skipping import zero_advantages_move_nothing
from hybridrl.batch import Batch
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.errors import ConfigError, DataError
from hybridrl.types import HANG_PART, Trajectory


def _of_trajectories(value: Callable[[Any], Any]) -> Callable[[Batch], np.ndarray]:
    return lambda batch: np.array([value(trajectory) for trajectory in batch.trajectories])


def part_names(trajectories: Iterable[Trajectory]) -> list[str]:
    """Names of the parts that any of these rewards has, in the order of the column reward_parts."""
    return sorted({name for t in trajectories for name in t.reward_parts} - {HANG_PART})


def _reward_parts(batch: Batch) -> np.ndarray:
    names = part_names(batch.trajectories)
    parts = [[t.reward_parts.get(name, 0.0) for name in names] for t in batch.trajectories]
    return np.array(parts, np.float32).reshape(len(batch), len(names))


def _soft_value(batch: Batch) -> np.ndarray:
    """v_star of every trajectory, a field of the data: A*-PO estimates it before the run, from answers of the
    reference policy."""
    missing = [group.prompt.uid for group in batch.groups if "v_star" not in group.prompt.row]
    if missing:
        raise DataError(
            f"prompt {missing[0]} has no field v_star",
            where="the estimator reads the soft value of each prompt from the data",
            fix="compute it with hybridrl.algorithms.estimators.a_star_po.soft_value",
        )
    return np.array([group.prompt.row["v_star"] for group in batch.groups], np.float32)[batch.group_N]


def _greedy_reward(batch: Batch) -> np.ndarray:
    return np.array([group.greedy_reward for group in batch.groups], np.float32)[batch.group_N]


CONTROLLER_COLUMNS: Mapping[Column, Callable[[Batch], np.ndarray]] = {
    "length": lambda batch: batch.trained_N,
    "prompt_length": _of_trajectories(lambda t: t.prompt_tokens),
    "turns": _of_trajectories(lambda t: t.turns),
    "truncated": _of_trajectories(lambda t: t.finish == "length"),
    "reward_parts": _reward_parts,
    "greedy_reward": _greedy_reward,
    "v_star": _soft_value,
    "agent": _of_trajectories(lambda t: t.agent),
    "episode": _of_trajectories(lambda t: t.episode),
}
"""How the controller computes the columns that it provides for every trajectory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditAssignment:
    """Computes the advantages of a batch from its scores."""

    estimator: AdvantageEstimator
    shaping: ShapingChain = ShapingChain(())
    drop_truncated: bool = False
    guards: bool = True
    samples_per_prompt: int | None = None
    """Number of answers in a complete group. None: not known."""

    skips_zeros: bool = False
    """Trajectories of advantage 0 move nothing, and are not computed."""

    @property
    def needs_greedy_answers(self) -> bool:
        return "greedy_reward" in self.estimator.needs | self.shaping.needs

    @property
    def needs_reward_parts(self) -> bool:
        return "reward_parts" in self.estimator.needs | self.shaping.needs

    def check_parts(self, names: Sequence[str]) -> None:
        """
        Args:
            names: names of the reward's parts.

        Raises:
            ConfigError: parts are needed, and these are too few: every advantage would be 0.
        """
        why = _unfit_parts(self.estimator, len(names)) if self.needs_reward_parts else None
        if why is not None:
            raise ConfigError(
                f"{why}; its parts are {', '.join(names) or 'none: it is a number alone'}",
                where="algorithm.estimator",
                fix="use reward weighted_sum, return a mapping of 'reward' and its parts, or estimator grpo",
            )

    def __call__(self, batch: Batch) -> list[Finding]:
        """Set reward_N, and advantage_N if scalars are enough; the trainer ranks compute it otherwise.

        Returns:
            The findings that look suspicious.

        Raises:
            ConfigError: as check_parts().
            GuardError: something is certainly wrong.
        """
        if self.needs_reward_parts:
            self.check_parts(part_names(batch.trajectories))
        episodes = Episodes.of(batch)
        batch.reward_N = self._shaped(batch, episodes)
        if self.drop_truncated:
            batch.dropped_N = CONTROLLER_COLUMNS["truncated"](batch)
        if on_ranks(self.estimator.needs):
            batch.scalars = {
                name: CONTROLLER_COLUMNS[name](batch)
                for name in sorted(self.estimator.needs & SCALAR_COLUMNS)
            }
        else:
            advantage_N = self.estimator(
                **episodes.rewards(batch), **episodes.columns(batch, self.estimator.needs)
            )
            assert isinstance(advantage_N, Tensor), "scalars in, one scalar per trajectory out"
            batch.advantage_N = episodes.spread(advantage_N)
            batch.still_N = batch.advantage_N == 0 if self.skips_zeros else None
        return stop(self._findings(batch, episodes), step=batch.step) if self.guards else []

    def _shaped(self, batch: Batch, episodes: "Episodes") -> np.ndarray:
        shaped_N = self.shaping(**episodes.rewards(batch), **episodes.columns(batch, self.shaping.needs))
        return episodes.spread(shaped_N).astype(np.float32)

    def _findings(self, batch: Batch, episodes: "Episodes") -> Iterator[Finding | None]:
        group_N = torch.from_numpy(batch.group_N)
        yield check_groups(group_N, torch.from_numpy(_prompt_numbers(batch)), self.samples_per_prompt)
        over = getattr(self.estimator, "centred", None)
        if over is not None and batch.advantage_N is not None:
            yield check_centred(episodes.of_main(batch.advantage_N), episodes.of_main(batch.group_N), over)
        score_N, length_N = torch.from_numpy(batch.score_N), torch.from_numpy(batch.trained_N)
        yield check_length_correlation(score_N, group_N, length_N)

    def state_dict(self) -> dict[str, Any]:
        """The state that shaping and estimator keep from step to step; it is part of a checkpoint."""
        return {name: part.state_dict() for name, part in self._stateful()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, part in self._stateful():
            part.load_state_dict(state[name])

    def _stateful(self) -> Iterable[tuple[str, Any]]:
        parts: dict[str, Any] = {f"shaping{i}": step for i, step in enumerate(self.shaping.steps)}
        parts["estimator"] = self.estimator
        return [(name, part) for name, part in parts.items() if hasattr(part, "state_dict")]


def load_credit(algorithm: AlgorithmConfig, *, skips_zeros: bool = False) -> CreditAssignment:
    """
    Args:
        skips_zeros: leave trajectories of advantage 0 out of the passes, if the algorithm allows it.

    Raises:
        ConfigError: an unknown plug-in or option, or one that needs a column which no part of a run computes.
    """
    credit = CreditAssignment(
        estimator=load_estimator(algorithm),
        shaping=load_shaping(algorithm.shaping, where="algorithm.shaping"),
        drop_truncated=algorithm.drop_truncated,
        guards=algorithm.guards == "stop",
        samples_per_prompt=algorithm.samples_per_prompt,
        skips_zeros=skips_zeros and zero_advantages_move_nothing(algorithm),
    )
    for error in credit_errors(algorithm, credit.estimator.needs, credit.shaping.needs):
        raise error
    return credit


def _unfit_parts(estimator: Any, count: int) -> str | None:
    try:
        estimator.check_parts(count) if hasattr(estimator, "check_parts") else None
    except ValueError as error:
        return str(error)
    return None if count else "the algorithm needs the parts of the reward"


@dataclass(frozen=True, slots=True)
class Episodes:
    """The trajectories that count in baselines: of the branches of an episode, the one with its last answer.
    The others get what that one gets."""

    main_M: np.ndarray
    """Rows of these trajectories."""

    of_row_N: np.ndarray
    """For each trajectory, which of them stands for it."""

    @classmethod
    def of(cls, batch: Batch) -> "Episodes":
        keys = [
            (group, t.episode if t.branch or t.ended else -1 - row, t.agent)
            for row, (group, t) in enumerate(zip(batch.group_N.tolist(), batch.trajectories, strict=True))
        ]
        first: dict[tuple[int, int, int], int] = {}
        for row, (key, trajectory) in enumerate(zip(keys, batch.trajectories, strict=True)):
            if not trajectory.branch:
                first[key] = row
        numbers = {row: number for number, row in enumerate(first.values())}
        return cls(np.array(list(first.values())), np.array([numbers[first[key]] for key in keys]))

    def rewards(self, batch: Batch) -> dict[str, Tensor]:
        return {"reward_N": self.of_main(batch.reward_N), "group_N": self.of_main(batch.group_N)}

    def columns(self, batch: Batch, needs: frozenset[Column]) -> dict[str, Tensor]:
        return {argument(name): self.of_main(CONTROLLER_COLUMNS[name](batch)) for name in sorted(needs)}

    def of_main(self, value_N: np.ndarray) -> Tensor:
        return torch.from_numpy(value_N[self.main_M])

    def spread(self, value_M: Tensor) -> np.ndarray:
        """A value for each trajectory, from one for each that counts."""
        return value_M.numpy()[self.of_row_N]


def _prompt_numbers(batch: Batch) -> np.ndarray:
    """A number for each trajectory's prompt, int64 [N], from its uid and not from group_N, which it
    checks."""
    numbers = [zlib.crc32(group.prompt.uid.encode()) for group in batch.groups for _ in group.trajectories]
    return np.array(numbers, np.int64)
