"""Correct steps as scalars of trajectories, for the guards that look at those.

Shape letters: N trajectories.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice

import torch
from torch import Generator, Tensor

from benchmarks._guard_columns import Regime
from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.guards import Finding, check_centred, check_groups, check_length_correlation
from hybridrl.config.schema import AlgorithmConfig

CENTRED = ("grpo", "dr_grpo", "rloo", "gpg", "lite_ppo", "max_rl")
"""Estimators whose advantages are checked for their sum."""

Rewards = Callable[[Tensor, Generator], Tensor]
"""(group_N, source of chance) -> reward_N"""


def groups(steps: int, draw: Generator, *, prompts: int, taken: int) -> Iterator[Finding | None]:
    """Whole groups in any order, of a data set that has fewer rows than a step takes, or more."""
    for samples in islice(cycle((2, 4, 16)), steps):
        group_N = torch.arange(taken).repeat_interleave(samples)
        prompt_N = (torch.randperm(prompts, generator=draw) * 1_000_003)[group_N % prompts]
        order_N = torch.randperm(len(group_N), generator=draw)
        yield check_groups(group_N[order_N], prompt_N[order_N], samples)


def advantages(
    steps: int, draw: Generator, *, rewards: Rewards, sizes: tuple[tuple[int, int], ...] = ((2, 32), (8, 16))
) -> Iterator[Finding | None]:
    """
    Args:
        sizes: (answers to a prompt, prompts), which take turns, as estimators do.
    """
    estimators = [load_estimator(AlgorithmConfig.model_validate({"estimator": name})) for name in CENTRED]
    cases = cycle([(estimator, size) for estimator in estimators for size in sizes])
    for estimator, (samples, prompts) in islice(cases, steps):
        group_N = torch.arange(prompts).repeat(samples)
        advantage_N = estimator(reward_N=rewards(group_N, draw), group_N=group_N)
        assert isinstance(advantage_N, Tensor)
        yield check_centred(advantage_N, group_N, "group")


def whitened(steps: int, draw: Generator, *, tail: float) -> Iterator[Finding | None]:
    """Whitened over the tokens of a batch, of answers of very unequal length."""
    estimator = load_estimator(AlgorithmConfig.model_validate({"estimator": "reinforce_plus_plus_baseline"}))
    group_N = torch.arange(64) // 8
    for _ in range(steps):
        length_N = (400 * torch.exp(torch.randn(64, generator=draw))).long().clamp(1, 32_768)
        reward_N = torch.exp(tail * torch.randn(64, generator=draw))
        advantage_N = estimator(reward_N=reward_N, group_N=group_N, length_N=length_N)
        assert isinstance(advantage_N, Tensor)
        yield check_centred(advantage_N * length_N, group_N, "batch")


def lengths(
    steps: int,
    draw: Generator,
    *,
    samples: int,
    solved: float = 0.5,
    tail: float = 1.0,
    limit: float = 1e9,
    by_prompt: bool = False,
) -> Iterator[Finding | None]:
    """64 or 128 answers whose rewards know nothing of their length, but that those at the limit fail.

    Args:
        solved: share of answers; tail: of log-normal lengths; by_prompt: hard prompts have long answers.
    """
    for num in islice(cycle((64, 128)), steps):
        group_N = torch.arange(num) // samples
        length_N = torch.exp(tail * torch.randn(num, generator=draw))
        reward_N = (torch.rand(num, generator=draw) < solved).float()
        if by_prompt:
            hard_N = torch.rand(num, generator=draw)[group_N]
            length_N, reward_N = length_N * (1 + 50 * hard_N), reward_N * (hard_N < 0.5)
        yield check_length_correlation(reward_N * (length_N < limit), group_N, length_N)


def binary(solved: float) -> Rewards:
    return lambda group_N, draw: (torch.rand(len(group_N), generator=draw) < solved).float()


def log_normal(sigma: float, unit: float = 1.0) -> Rewards:
    return lambda group_N, draw: unit * torch.exp(sigma * torch.randn(len(group_N), generator=draw))


def far_from_0(group_N: Tensor, draw: Generator) -> Tensor:
    return 1e4 + torch.rand(len(group_N), generator=draw)


def one_fails(group_N: Tensor, draw: Generator) -> Tensor:
    """All answers to a prompt earn the same, but the first one; the worst for the rounding of a mean."""
    level_N = torch.rand(len(group_N), generator=draw)[group_N]
    return torch.where(torch.arange(len(group_N)) > group_N.max(), level_N, 0.0)


SCALARS: dict[str, dict[str, Regime]] = {
    "groups": {
        "other prompts each step": partial(groups, prompts=64, taken=32),
        "an epoch ends": partial(groups, prompts=24, taken=32),
        "fewer rows than a step takes": partial(groups, prompts=4, taken=32),
    },
    "centred": {
        "half solved": partial(advantages, rewards=binary(0.5)),
        "nearly all solved": partial(advantages, rewards=binary(0.98)),
        "log-normal rewards, sigma 1": partial(advantages, rewards=log_normal(1.0)),
        "log-normal rewards, sigma 6": partial(advantages, rewards=log_normal(6.0)),
        "rewards of 1e-7": partial(advantages, rewards=log_normal(1.0, unit=1e-7)),
        "rewards far from 0": partial(advantages, rewards=far_from_0),
        "all but one earn the same": partial(advantages, rewards=one_fails),
        "1024 answers, all but one the same": partial(advantages, rewards=one_fails, sizes=((1024, 1),)),
        "whitened over tokens": partial(whitened, tail=0.5),
        "whitened over tokens, heavy tails": partial(whitened, tail=4.0),
    },
    "length": {
        "pairs": partial(lengths, samples=2),
        "groups of 8": partial(lengths, samples=8),
        "groups of 64": partial(lengths, samples=64),
        "nearly all solved": partial(lengths, samples=8, solved=0.98),
        "lengths of heavy tails": partial(lengths, samples=8, tail=3.0),
        "solved but for those at the limit": partial(lengths, samples=8, solved=1.0, limit=10.0),
        "half solved, cut ones fail": partial(lengths, samples=8, limit=5.0),
        "hard prompts have long answers": partial(lengths, samples=8, by_prompt=True),
    },
}
"""Guard -> regime -> its steps."""
