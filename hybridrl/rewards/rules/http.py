"""The score that a service gives an answer over HTTP; docs/judges.md has the protocol.

reward: {name: http, url: "http://judge.cluster:8080/score", batch: 16, concurrency: 32}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridrl.registry import register
from hybridrl.rewards.judges.replies import UnjudgedError, reply_to
from hybridrl.rewards.score import UnreadableScore, read_score


@register("reward", "http")
@dataclass(frozen=True, kw_only=True)
class HttpJudge:
    url: str
    """Address that answers are posted to."""

    batch: int = 1
    """Answers of one request."""

    concurrency: int = 64
    """Requests that run at the same time."""

    retries: int = 3
    """How often a request that failed is sent again."""

    request_timeout_s: float = 60.0
    """The service may take this long for a request, from the connection to the last byte."""

    fields: tuple[str, ...] | None = None
    """Columns of the row that are sent. None: all."""

    key_variable: str = ""
    """Environment variable whose value is sent as a bearer token; reward.variables lists it too."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url = {self.url}, which is no address: write http://host:port/score")
        for name, least in (("batch", 1), ("concurrency", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)} is below {least}")
        if self.request_timeout_s <= 0:
            raise ValueError(f"request_timeout_s = {self.request_timeout_s} is not above 0")

    @property
    def key(self) -> str:
        """What its replies are found by."""
        return repr(self)

    def __call__(self, answer: str, row: Mapping[str, Any]) -> Any:
        """What the service gave the answer: a number, or a mapping with "reward" and parts.

        Raises:
            UnjudgedError: it gave none.
        """
        found = reply_to(row, self.key)
        try:
            score = read_score(found)
        except UnreadableScore as error:
            raise UnjudgedError(f"garbage: {self.url} {error}") from None
        return {**score.parts, "reward": score.reward}

    def gold(self, row: Mapping[str, Any], *, answer_field: str) -> None:
        """There is none: nobody is asked about reference answers."""
        return None
