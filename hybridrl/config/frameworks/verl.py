"""verl 0.9.1 and its main branch of August 2026 (verl/trainer/ppo/core_algos.py); flash_reinforce: October
2026."""

from collections.abc import Mapping

from hybridrl.config.frameworks.row import Row, clip, kl, norm, row

_VANILLA = clip(dual_clip=3.0)
_GRPO = norm(eps=1e-6, singleton="reward")
_ALONE = "the only answer to a prompt trains on its raw reward"
_CLIPS = "its own defaults of both clips are 0.2; these are those of its example"

ROWS: Mapping[str, Row] = {
    "grpo": row(f"{_ALONE}; dual clip at 3", _GRPO, _VANILLA, kl=kl("k3_clamped", "loss")),
    "dr_grpo": row(
        _ALONE,
        norm(std="none", singleton="reward", eps=0.0),
        _VANILLA,
        "seq_mean_token_sum_norm",
        not_kept="without loss_scale_factor verl divides by the padded width of each batch",
    ),
    "rloo": row(
        f"{_ALONE} (its loop; vectorised it is 0)",
        norm(mean="others", std="none", singleton="reward", eps=0.0),
        _VANILLA,
    ),
    "gdpo": row(
        "whitened over all trained tokens; dual clip at 3",
        {"name": "gdpo", "whiten": "token"},
        _VANILLA,
        not_kept="the only answer to a prompt trains there on its raw parts",
    ),
    "reinforce_plus_plus": row(
        "variance with n-1",
        {"name": "reinforce_plus_plus", "bessel": True},
        _VANILLA,
        kl=kl("k1", "reward"),
    ),
    "reinforce_plus_plus_baseline": row(
        "the only answer to a prompt keeps its raw reward until it is whitened",
        norm(std="none", whiten="token", singleton="reward", eps=0.0),
        _VANILLA,
    ),
    "remax": row("PPO-clip with a dual clip at 3 and token mean in place of REINFORCE", "remax", _VANILLA),
    "opo": row(
        "PPO-clip with a dual clip at 3 and token mean in place of REINFORCE",
        "opo",
        _VANILLA,
        not_kept=_ALONE,
    ),
    "gpg": row(
        "scaled to the answers with a reward that is not 0, in place of those of groups that teach something",
        {"name": "gpg", "count": "nonzero"},
        "reinforce",
        not_kept=_ALONE,
    ),
    "grpo_passk": row(
        "dual clip at 3", "grpo_passk", _VANILLA, not_kept="the only answer to a prompt is an error there"
    ),
    "optimal_token_baseline": row(
        "dual clip at 3", "optimal_token_baseline", _VANILLA, not_kept=f"{_ALONE}, here on 0"
    ),
    "ppo": row("dual clip at 3", "gae", _VANILLA),
    "dapo": row(
        "dual clip at 10, as in its recipe",
        _GRPO,
        clip(high=0.28, dual_clip=10.0),
        dynamic_sampling={},
        not_kept="its overlong penalty is the shaping overlong",
    ),
    "gspo": row(_ALONE, _GRPO, clip(3e-4, 4e-4, name="gspo"), "seq_mean_token_mean", not_kept=_CLIPS),
    "sapo": row(_ALONE, _GRPO, "sapo", "seq_mean_token_mean"),
    "cispo": row(
        "the weight is at most 1.2, without a lower bound",
        _GRPO,
        clip(1.0, 0.2, name="cispo"),
        not_kept=_CLIPS,
    ),
    "gmpo": row(
        _ALONE,
        _GRPO,
        clip(0.4, 0.4, name="gmpo"),
        "seq_mean_token_mean",
        not_kept="its own defaults of both clips are 0.2; it takes the mean over answers per microbatch",
    ),
    "dppo": row(
        "around the policy before the update, ratios of at most 3",
        _GRPO,
        {"name": "dppo_tv", "delta_low": 0.2, "delta_high": 0.2, "max_ratio": 3.0},
        not_kept="with bypass_mode the policy that sampled takes the place of the one before the update",
    ),
    "dppo_kl": row(
        "around the policy before the update, ratios of at most 3",
        _GRPO,
        {"name": "dppo_kl", "delta_low": 0.2, "delta_high": 0.2, "max_ratio": 3.0},
        not_kept="with bypass_mode the policy that sampled takes the place of the one before the update",
    ),
    "clip_cov": row(
        _ALONE,
        _GRPO,
        clip(name="clip_cov"),
        not_kept="covariances are of a microbatch and the current policy there, tokens beyond the clip are "
        "never chosen, and the draw depends on the ranks",
    ),
    "kl_cov": row(
        "weight of 0.1",
        _GRPO,
        {"name": "kl_cov", "coefficient": 0.1},
        not_kept="covariances are of a microbatch and the current policy there",
    ),
    "distillation": row(
        "PPO-clip with a dual clip at 3 in place of REINFORCE",
        "distillation",
        _VANILLA,
        not_kept="use_policy_gradient with loss_mode=k1; the divergence is that of the current policy there, "
        "which differs after the first optimizer step of a batch, and it may be clamped",
    ),
    "flash_reinforce": row(
        "as ours", norm(mean="batch", std="none"), "flash_reinforce", "seq_mean_token_mean"
    ),
}
