"""Rows that reproduce the numerics of other frameworks: eps, degrees of freedom, groups of one, aggregation.

What they compute in addition (length penalties, filters, the denominators of a microbatch) is not part of a
row; `not_kept` names it.
Formulas and defaults as of mid-2026.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CLIP = {"name": "ppo_clip", "clip_low": 0.2, "clip_high": 0.2}


@dataclass(frozen=True, slots=True)
class Row:
    about: str
    """What differs from ours, in one line."""

    algorithm: Mapping[str, Any]
    """Keys of the section `algorithm`."""

    not_kept: str = ""
    """What that framework does in addition, which the row leaves out, or what differs by less than 1e-6."""


def _norm(**options: Any) -> dict[str, Any]:
    return {"name": "group_norm", **options}


COMPATIBILITY: Mapping[str, Mapping[str, Row]] = {
    "grpo": {
        "verl": Row(
            "the only answer to a prompt trains on its raw reward; dual clip at 3",
            {
                "estimator": _norm(eps=1e-6, singleton="reward"),
                "loss": _CLIP | {"dual_clip": 3.0},
                "aggregate": "token_mean",
                "kl": {"estimator": "k3_clamped", "in": "loss"},
            },
        ),
        "slime": Row(
            "mean over answers of token means",
            {
                "estimator": _norm(eps=1e-6),
                "loss": _CLIP,
                "aggregate": "seq_mean_token_mean",
                "kl": {"estimator": "k3_clamped", "in": "loss"},
            },
            "with groups of unequal size slime makes the whole batch one group",
        ),
        "openrlhf": Row(
            "eps of 1e-9",
            {
                "estimator": _norm(eps=1e-9),
                "loss": _CLIP,
                "aggregate": "token_mean",
                "kl": {"estimator": "k3_clamped"},
            },
            "token means are taken per microbatch there",
        ),
        "nemo_rl": Row(
            "mean and std of the other answers only; nothing is divided where that std is 0",
            {
                "estimator": _norm(mean="others", std="others", eps=1e-6),
                "loss": _CLIP,
                "aggregate": "token_mean",
                "kl": {"estimator": "k3_clamped", "coefficient": 0.01, "in": "loss"},
            },
        ),
        "trl": Row(
            "eps of 1e-4: below 0.1 % with rewards of 0 and 1, more with fine-grained ones; "
            "bias-corrected KL (since 1.10)",
            {
                "estimator": _norm(eps=1e-4),
                "loss": _CLIP,
                "aggregate": "token_mean",
                "kl": {"estimator": "k3_unbiased"},
            },
            "with vLLM it also leaves out answers whose probability differs between engine and trainer "
            "(correction sequence_mask, highest 3)",
        ),
        "prime_rl": Row(
            "no division by the std; a trust region on probabilities since sampling in place of the clip",
            {
                "estimator": _norm(std="none"),
                "loss": {"name": "dppo_tv", "delta_low": 0.2, "delta_high": 0.2, "drift": 1e-3},
                "aggregate": "token_mean",
                "correction": ["bypass"],
            },
            "its length penalty is the shaping relative_length",
        ),
    },
    "dr_grpo": {
        "verl": Row(
            "the only answer to a prompt trains on its raw reward",
            {
                "estimator": _norm(std="none", singleton="reward", eps=0.0),
                "loss": _CLIP | {"dual_clip": 3.0},
                "aggregate": "seq_mean_token_sum_norm",
            },
            "without loss_scale_factor verl divides by the padded width of each batch",
        ),
        "trl": Row(
            "bias-corrected KL (since 1.10)",
            {
                "estimator": _norm(std="none"),
                "loss": _CLIP,
                "aggregate": "seq_mean_token_sum_norm",
                "kl": {"estimator": "k3_unbiased"},
            },
        ),
    },
    "rloo": {
        "verl": Row(
            "the only answer to a prompt trains on its raw reward (its loop; vectorised it is 0)",
            {
                "estimator": _norm(mean="others", std="none", singleton="reward", eps=0.0),
                "loss": _CLIP | {"dual_clip": 3.0},
                "aggregate": "token_mean",
            },
        ),
        "openrlhf": Row(
            "as ours",
            {"estimator": _norm(mean="others", std="none"), "loss": _CLIP, "aggregate": "token_mean"},
        ),
    },
    "gdpo": {
        "verl": Row(
            "whitened over all trained tokens; dual clip at 3",
            {
                "estimator": {"name": "gdpo", "whiten": "token"},
                "loss": _CLIP | {"dual_clip": 3.0},
                "aggregate": "token_mean",
            },
            "the only answer to a prompt trains there on its raw parts",
        ),
    },
    "reinforce_plus_plus": {
        "verl": Row(
            "variance with n-1",
            {
                "estimator": {"name": "reinforce_plus_plus", "bessel": True},
                "loss": _CLIP | {"dual_clip": 3.0},
                "aggregate": "token_mean",
                "kl": {"estimator": "k1", "in": "reward"},
            },
        ),
        "openrlhf": Row(
            "variance with n; k1 clamped to +-10",
            {
                "estimator": {"name": "reinforce_plus_plus", "bessel": False},
                "loss": _CLIP,
                "aggregate": "token_mean",
                "kl": {"estimator": "k1_clamped", "in": "reward"},
            },
            "1e-8 is the least variance there, not added to it",
        ),
        "nemo_rl": Row(
            "variance with n; the group's mean as baseline; each token pays for its own KL only",
            {
                "estimator": {
                    "name": "reinforce_plus_plus",
                    "bessel": False,
                    "baseline": "group",
                    "penalty": "token",
                },
                "loss": _CLIP,
                "aggregate": "token_mean",
                "kl": {"estimator": "k3_clamped", "in": "reward"},
            },
            "1e-8 is the least variance there, not added to it; KL is in the loss there unless "
            "use_kl_in_reward is set",
        ),
    },
    "reinforce_plus_plus_baseline": {
        "verl": Row(
            "the only answer to a prompt keeps its raw reward until it is whitened",
            {
                "estimator": _norm(std="none", whiten="token", singleton="reward", eps=0.0),
                "loss": _CLIP | {"dual_clip": 3.0},
                "aggregate": "token_mean",
            },
        ),
        "slime": Row(
            "as ours",
            {
                "estimator": {"name": "reinforce_plus_plus_baseline"},
                "loss": _CLIP,
                "aggregate": "seq_mean_token_mean",
            },
        ),
    },
}
"""Algorithm -> framework -> row; `preset: verl/grpo` in a config."""
