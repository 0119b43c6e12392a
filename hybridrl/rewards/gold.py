"""Checks that the reward accepts the data's own reference answers, which finds most runs that could not
learn."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from hybridrl.errors import RewardError
from hybridrl.rewards.pool import Scorer


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

    @property
    def rejected_share(self) -> float:
        return len(self.rejected_rows) / self.num_checked if self.num_checked else 0.0


def check_on_gold(
    scorer: Scorer,
    rows: Rows,
    *,
    where: str,
    sample: int = 200,
    max_rejected: float = 0.05,
) -> GoldCheck:
    """Score the reference answers of rows spread evenly over the data.

    A function of the user may expect answers of another form, so only what it raises counts, not what it
    returns.

    Args:
        where: names the data in an error.
        sample: largest number of rows that are scored.
        max_rejected: share of rejected references above which a rule reward is refused.

    Raises:
        RewardError: too many are rejected, or the reward raised on one.
        DeadlineError: the reward did not return for one.
    """
    picked = sorted({i * len(rows) // sample for i in range(sample)})
    scores = scorer.score_gold(
        [rows[i] for i in picked], [f"the gold answer of row {i + 1} in {where}" for i in picked]
    )
    checked = [(i, score) for i, score in zip(picked, scores, strict=True) if score is not None]
    check = GoldCheck(len(checked), tuple(i for i, score in checked if score.reward <= 0))
    if check.rejected_share > max_rejected and ":" not in scorer.reward.name:
        first, field = check.rejected_rows[0], scorer.reward.answer_field
        percent = f"{100 * check.rejected_share:.0f} %"
        raise RewardError(
            f"reward {scorer.reward.name} gives 0 on {percent} of the gold answers in {where}",
            where=f'first: row {first + 1}, "{rows[first].get(field)!s:.80}"',
            fix=f"check reward.answer_field = {field} and the options of the reward",
        )
    return check
