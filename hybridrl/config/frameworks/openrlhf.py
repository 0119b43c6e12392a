"""OpenRLHF, August 2026 (openrlhf/trainer/ppo_utils/experience_maker.py, openrlhf/models/loss.py)."""

from collections.abc import Mapping

from hybridrl.config.frameworks.row import Row, clip, kl, norm, row

_KL = kl("k1_clamped", "reward")
_FLOOR = "1e-8 is the least variance there, not added to it"
_CLIPPED = "rewards with their KL are clipped to +-10 there (shaping clip, before the KL)"

ROWS: Mapping[str, Row] = {
    "grpo": row(
        "eps of 1e-9",
        norm(eps=1e-9),
        clip(),
        kl={"estimator": "k3_clamped"},
        not_kept="token means are taken per microbatch there in releases before August 2026",
    ),
    "rloo": row("as ours", norm(mean="others", std="none"), clip()),
    "dr_grpo": row("token mean in place of the constant divisor", norm(std="none"), clip()),
    "reinforce_plus_plus": row(
        "variance with n; k1 clamped to +-10",
        {"name": "reinforce_plus_plus", "bessel": False},
        clip(),
        kl=_KL,
        not_kept=_FLOOR,
    ),
    "reinforce_plus_plus_baseline": row(
        "variance with n; KL (k1, clamped to +-10) in the reward",
        {"name": "reinforce_plus_plus", "bessel": False, "baseline": "group"},
        clip(),
        kl=_KL,
        not_kept=_FLOOR,
    ),
    "ppo": row(
        "variance with n; KL (k1, clamped to +-10) in the reward",
        {"name": "gae", "bessel": False},
        clip(),
        kl=_KL,
        not_kept=f"{_FLOOR}; {_CLIPPED}",
    ),
    "gspo": row(
        "eps of 1e-9",
        norm(eps=1e-9),
        clip(3e-4, 4e-4, name="gspo"),
        "seq_mean_token_mean",
        not_kept="its own default of both clips is 0.2",
    ),
}
