"""Named algorithms as rows of choices: what `algorithm.preset` sets. Keys that a config writes beside it win.

A row is what its paper says about estimator, loss, aggregation and KL; sizes, learning rate and sampling stay
with the run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Preset:
    about: str
    """One line, with the source, and what of it is not part of the row."""

    algorithm: Mapping[str, Any]
    """Keys of the section `algorithm`."""


_CLIP = {"name": "ppo_clip", "clip_low": 0.2, "clip_high": 0.2}

PRESETS: Mapping[str, Preset] = {
    "grpo": Preset(
        "group mean and std as baseline and scale, arXiv:2402.03300",
        {
            "estimator": {"name": "grpo"},
            "loss": _CLIP,
            "aggregate": "seq_mean_token_mean",
            "kl": {"estimator": "k3"},
        },
    ),
    "dr_grpo": Preset(
        "GRPO without the std and without the length bias, arXiv:2503.20783",
        {"estimator": {"name": "dr_grpo"}, "loss": _CLIP, "aggregate": "seq_mean_token_sum_norm"},
    ),
    "rloo": Preset(
        "the other answers' mean as baseline, arXiv:2402.14740; sums over tokens are divided by a constant",
        {"estimator": {"name": "rloo"}, "loss": _CLIP, "aggregate": "seq_mean_token_sum_norm"},
    ),
    "reinforce_plus_plus": Preset(
        "returns whitened over the batch, KL in the reward, arXiv:2501.03262",
        {
            "estimator": {"name": "reinforce_plus_plus"},
            "loss": _CLIP,
            "aggregate": "token_mean",
            "kl": {"estimator": "k1", "in": "reward"},
        },
    ),
    "reinforce_plus_plus_baseline": Preset(
        "group mean as baseline, then whitened over the batch, KL (k2) in the loss, arXiv:2501.03262",
        {
            "estimator": {"name": "reinforce_plus_plus_baseline"},
            "loss": _CLIP,
            "aggregate": "token_mean",
            "kl": {"estimator": "k2", "in": "loss"},
        },
    ),
    "dapo": Preset(
        "higher upper clip and token mean, arXiv:2503.14476; no dynamic sampling, no overlong penalty",
        {"estimator": {"name": "grpo"}, "loss": _CLIP | {"clip_high": 0.28}, "aggregate": "token_mean"},
    ),
}
