"""A row of choices, and the choices that several frameworks share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    about: str
    """What differs from ours, in one line."""

    algorithm: Mapping[str, Any]
    """Keys of the section `algorithm`."""

    not_kept: str = ""
    """What that framework does in addition, which the row leaves out, or what differs by less than 1e-6."""

    samples_per_prompt: int | None = None
    """Answers to a prompt in the config that `init` writes; None: as in the algorithm's own preset."""


def norm(**options: Any) -> dict[str, Any]:
    """Rewards normalised as the estimator group_norm does."""
    return {"name": "group_norm", **options}


def clip(low: float = 0.2, high: float = 0.2, **options: Any) -> dict[str, Any]:
    """PPO-clip, or another loss with its bounds (name=...)."""
    return {"name": "ppo_clip", "clip_low": low, "clip_high": high, **options}


def row(
    about: str,
    estimator: Mapping[str, Any] | str,
    loss: Mapping[str, Any] | str,
    aggregate: str = "token_mean",
    *,
    not_kept: str = "",
    samples_per_prompt: int | None = None,
    **keys: Any,
) -> Row:
    """
    Args:
        keys: further keys of the section `algorithm`.
    """
    plugins = {
        key: {"name": plugin} if isinstance(plugin, str) else dict(plugin)
        for key, plugin in (("estimator", estimator), ("loss", loss))
    }
    return Row(about, {**plugins, "aggregate": aggregate, **keys}, not_kept, samples_per_prompt)


def kl(estimator: str, place: str, **keys: Any) -> dict[str, Any]:
    """The section `algorithm.kl`."""
    return {"estimator": estimator, "in": place, **keys}
