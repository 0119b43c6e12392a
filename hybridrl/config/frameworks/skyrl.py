"""SkyRL, August 2026 (skyrl/backends/skyrl_train/utils/ppo_utils.py)."""

from collections.abc import Mapping

from hybridrl.config.frameworks.row import Row, clip, kl, norm, row

_GRPO = norm(eps=1e-6, singleton="reward")
_KL = kl("k3_clamped", "loss", coefficient=0.001)
_VALUE = "the loss that it reports differs from ours, the gradient does not"
_ALONE = "the only answer to a prompt trains on its raw reward"

ROWS: Mapping[str, Row] = {
    "grpo": row(_ALONE, _GRPO, clip(), kl=_KL),
    "dr_grpo": row(
        _ALONE, norm(std="none", singleton="reward", eps=0.0), clip(), "seq_mean_token_sum_norm", kl=_KL
    ),
    "rloo": row("token mean", norm(mean="others", std="none"), clip(), kl=_KL),
    "reinforce_plus_plus": row(
        "variance with n-1; KL (k3) in the loss", "reinforce_plus_plus", clip(), kl=_KL
    ),
    "max_rl": row("KL (k3) in the loss", "max_rl", clip(), kl=_KL, not_kept=_ALONE),
    "ppo": row("KL (k3) in the loss", "gae", clip(), kl=_KL),
    "gspo": row(
        _ALONE,
        _GRPO,
        clip(3e-4, 4e-4, name="gspo"),
        "seq_mean_token_mean",
        kl=_KL,
        not_kept="its own default of both clips is 0.2",
    ),
    "sapo": row(_ALONE, _GRPO, "sapo", "seq_mean_token_mean", kl=_KL),
    "cispo": row(f"{_ALONE}; the weight is at most 5", _GRPO, clip(1.0, 4.0, name="cispo"), kl=_KL),
    "dppo": row(
        _ALONE,
        _GRPO,
        {"name": "dppo_tv", "delta_low": 0.2, "delta_high": 0.2},
        correction=["bypass"],
        kl=_KL,
        not_kept=_VALUE,
    ),
    "dppo_kl": row(
        f"{_ALONE}; 0.05 nats, as it recommends",
        _GRPO,
        {"name": "dppo_kl", "delta_low": 0.05, "delta_high": 0.05},
        correction=["bypass"],
        kl=_KL,
        not_kept=_VALUE,
    ),
    "glm5": row(_ALONE, _GRPO, clip(name="cispo", outside="zero"), correction=["bypass"], kl=_KL),
    "clip_cov": row(
        _ALONE,
        _GRPO,
        clip(name="clip_cov"),
        kl=_KL,
        not_kept="covariances are of a microbatch and the current policy there, tokens beyond the clip are "
        "never chosen, and the draw depends on the ranks",
    ),
    "kl_cov": row(
        f"{_ALONE}; a fifth of the tokens",
        _GRPO,
        {"name": "kl_cov", "share": 0.2, "coefficient": 1.0},
        kl=_KL,
        not_kept="covariances are of a microbatch and the current policy there",
    ),
}
