"""Checks that the reward accepts the data's own reference answers, which finds most runs that could not
learn."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from hybridrl.errors import RewardError
from hybridrl.rewards.pool import Scorer
from hybridrl.types import in_row

MOST_WANTED = 0.95
"""Share of reference answers that a reward which knows their form accepts: a few of most data are wrong."""


class Rows(Protocol):
    """A sequence of rows, or a table that reads them from a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class GoldCheck:
    """How a reward judged reference answers."""

    num_checked: int
    """Rows from which the reward could make an answer; 0 for rewards that cannot, such as a pattern."""

    rejected_rows: tuple[int, ...]
    """Rows whose reference got a reward of 0 or less."""

    warning: str = ""
    """What a person should look at, though the run may start."""

    @property
    def accepted_share(self) -> float:
        """1 if no reference could be scored."""
        return (self.num_checked - len(self.rejected_rows)) / self.num_checked if self.num_checked else 1.0


def check_on_gold(scorer: Scorer, rows: Rows, *, where: str, sample: int = 200) -> GoldCheck:
    """Score the reference answers of rows spread evenly over the data.

    A function of the user may expect answers of another form. If it makes no gold answers itself, and
    reward.min_gold is not set, only what it raises counts, and what it rejects is a warning.

    Args:
        where: names the data in an error.
        sample: largest number of rows that are scored.

    Raises:
        RewardError: too few are accepted, or the reward raised on one.
        DeadlineError: the reward did not return for one.
    """
    picked = spread(len(rows), sample)
    scores = scorer.score_gold(
        [rows[i] for i in picked], [f"the gold answer of row {i + 1} in {where}" for i in picked]
    )
    checked = [(i, score) for i, score in zip(picked, scores, strict=True) if score is not None]
    check = GoldCheck(len(checked), tuple(i for i, score in checked if score.reward <= 0))
    if check.accepted_share < least_accepted(scorer):
        raise _refused(check, scorer, rows, where)
    if check.accepted_share < MOST_WANTED:
        refusal = _refused(check, scorer, rows, where)
        return replace(check, warning=f"{refusal.what}  ({refusal.where}): {refusal.fix}")
    return check


def spread(num_rows: int, sample: int) -> list[int]:
    """Numbers of at most `sample` rows, spread evenly over all."""
    return sorted({i * num_rows // sample for i in range(sample)})


def least_accepted(scorer: Scorer) -> float:
    """The share of reference answers that a reward has to accept."""
    if scorer.reward.min_gold is not None:
        return scorer.reward.min_gold
    return MOST_WANTED if _knows_form(scorer) else 0.0


def _knows_form(scorer: Scorer) -> bool:
    """Whether the answers that are made from references have the form that the reward expects."""
    return ":" not in scorer.reward.name or scorer.makes_gold


def _refused(check: GoldCheck, scorer: Scorer, rows: Rows, where: str) -> RewardError:
    first, reward = check.rejected_rows[0], scorer.reward
    percent, least = f"{100 * len(check.rejected_rows) / check.num_checked:.0f} %", least_accepted(scorer)
    own_form = ", or give it a method gold that writes a reference in the form that it expects"
    form = "" if _knows_form(scorer) else own_form
    asked = f", reward.min_gold = {least:g}" if reward.min_gold is not None else ""
    return RewardError(
        f"reward {reward.name} gives 0 on {percent} of the gold answers in {where}{asked}",
        where=f'first: row {first + 1}, "{in_row(rows[first], reward.answer_field)!s:.80}"',
        fix=f"check reward.answer_field = {reward.answer_field} and the options of the reward{form}",
    )
