"""mean@k and pass@k of an evaluation, each with a 95 % confidence interval over prompts.

The prompts are the sample: answers to one prompt are alike, so an interval over answers would be too narrow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hybridrl.report.student import quantile

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts and its confidence interval. With one prompt the interval is nan."""

    value: float
    low: float
    high: float


def mean_at_k(rewards: Sequence[Sequence[float]]) -> Estimate:
    """The mean over prompts of the mean reward of a prompt's answers."""
    means = [sum(of_prompt) / len(of_prompt) for of_prompt in rewards]
    bounded = all(0.0 <= reward <= 1.0 for of_prompt in rewards for reward in of_prompt)
    return share(means) if bounded else over_prompts(means)


def pass_at_k(rewards: Sequence[Sequence[float]], k: int, *, solved_above: float) -> Estimate:
    """The share of prompts of which at least one of k answers is solved.

    Of n answers, c of them solved, 1 - C(n-c, k) / C(n, k) estimates it without bias (Chen et al. 2021,
    "Evaluating Large Language Models Trained on Code", arXiv:2107.03374, section 2.1).

    Args:
        k: at most the number of answers to a prompt with the fewest.
        solved_above: an answer is solved if its reward is above this.
    """
    return share([_passes(len(r), sum(x > solved_above for x in r), k) for r in rewards])


def over_prompts(values: Sequence[float]) -> Estimate:
    """The mean of values of any range, with Student's interval."""
    mean, error = _mean_and_error(values)
    if math.isnan(error):
        return Estimate(mean, math.nan, math.nan)
    half = quantile(CONFIDENCE, len(values) - 1) * error
    return Estimate(mean, mean - half, mean + half)


def share(values: Sequence[float]) -> Estimate:
    """The mean of values between 0 and 1, with Wilson's interval, which is not empty if all are equal.

    The number of trials is the number of prompts, more if the values are closer to each other than 0 and 1
    are: the number with which a proportion would have their standard error (Korn and Graubard 1998).
    """
    mean, error = _mean_and_error(values)
    if math.isnan(error):
        return Estimate(mean, math.nan, math.nan)
    trials = max(len(values), mean * (1.0 - mean) / error**2 if error else 0.0)
    z = quantile(CONFIDENCE, len(values) - 1)
    middle = (mean + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(mean * (1 - mean) / trials + (z / (2 * trials)) ** 2)
    return Estimate(mean, min(mean, max(0.0, middle - half)), max(mean, min(1.0, middle + half)))


def _passes(answers: int, solved: int, k: int) -> float:
    return 1.0 - math.comb(answers - solved, k) / math.comb(answers, k)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error; nan with one value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    squares = sum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (len(values) - 1) / len(values))
