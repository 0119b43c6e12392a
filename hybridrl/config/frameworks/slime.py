"""slime, August 2026 (slime/utils/ppo_utils.py, slime/backends/megatron_utils/loss.py)."""

from collections.abc import Mapping

from hybridrl.config.frameworks.row import Row, clip, kl, norm, row

_GRPO = norm(eps=1e-6)
_KL = kl("k3_clamped", "loss")
_UNEQUAL = "with groups of unequal size slime makes the whole batch one group"

ROWS: Mapping[str, Row] = {
    "grpo": row(
        "mean over answers of token means", _GRPO, clip(), "seq_mean_token_mean", kl=_KL, not_kept=_UNEQUAL
    ),
    "gspo": row(
        "as ours",
        _GRPO,
        clip(4e-4, 4e-4, name="gspo"),
        "seq_mean_token_mean",
        kl=_KL,
        not_kept=f"its own default of both clips is 0.2; these are those of its scripts; {_UNEQUAL}",
    ),
    "cispo": row(
        "mean over answers of token means",
        _GRPO,
        clip(1.0, 4.0, name="cispo"),
        "seq_mean_token_mean",
        kl=_KL,
        not_kept=f"its own default of both clips is 0.2, and it warns to use these; {_UNEQUAL}",
    ),
    "reinforce_plus_plus": row(
        "mean over answers of token means",
        {"name": "reinforce_plus_plus", "bessel": True},
        clip(),
        "seq_mean_token_mean",
        kl=kl("k1", "reward"),
        not_kept="it refuses to run without --normalize-advantages",
    ),
    "reinforce_plus_plus_baseline": row(
        "as ours", "reinforce_plus_plus_baseline", clip(), "seq_mean_token_mean"
    ),
    "ppo": row(
        "no whitening unless --normalize-advantages; mean over answers of token means",
        {"name": "gae", "whiten": False},
        clip(),
        "seq_mean_token_mean",
        kl=kl("k1", "reward"),
    ),
}
