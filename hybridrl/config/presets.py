"""Named algorithms as rows of choices: what a preset sets under `algorithm`. Keys that a config writes beside it win.

A row says what the paper says; sizes, learning rate and sampling stay with the run.
"""

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Shao et al. 2024, arXiv:2402.03300; token mean instead of the paper's mean of sequence means
    "grpo": {"estimator": {"name": "grpo"}, "loss": {"name": "ppo_clip"}, "aggregate": "token_mean"},
}
