"""What a trial of a user's code showed: of a reward, or of an environment."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "no"]
"""no: a run would end, or learn from something wrong. warning: for the user to judge."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one question of a trial showed."""

    verdict: Verdict
    kind: str
    """What was tried, in a word or two."""

    text: str
