"""NeMo-RL, August 2026 (nemo_rl/algorithms/advantage_estimator.py, loss/loss_functions.py)."""

from collections.abc import Mapping

from hybridrl.config.frameworks.row import Row, clip, kl, norm, row

_GRPO = norm(mean="others", std="others", eps=1e-6)
_KL = kl("k3_score", "loss", coefficient=0.01)
_FLOOR = "1e-8 is the least variance there, not added to it"

ROWS: Mapping[str, Row] = {
    "grpo": row(
        "mean and std of the other answers only; nothing is divided where that std is 0; the gradient of the "
        "KL has its score term",
        _GRPO,
        clip(),
        kl=_KL,
    ),
    "rloo": row(
        "no ratio and no clip; the gradient of the KL has its score term",
        norm(mean="others", std="none"),
        "reinforce",
        kl=_KL,
    ),
    "reinforce": row("token mean", norm(mean="none", std="none"), "reinforce", kl=_KL),
    "gdpo": row(
        "mean and std of the other answers only",
        {"name": "gdpo", "baseline": "others", "whiten_eps": 0.0},
        clip(),
        kl=_KL,
        not_kept="its example sets use_leave_one_out_baseline: false, which is baseline: group",
    ),
    "reinforce_plus_plus": row(
        "variance with n; the group's mean as baseline; each token pays for its own KL only",
        {"name": "reinforce_plus_plus", "bessel": False, "baseline": "group", "penalty": "token"},
        clip(),
        kl=kl("k3_clamped", "reward"),
        samples_per_prompt=8,
        not_kept=f"{_FLOOR}; KL is in the loss there unless use_kl_in_reward is set",
    ),
    "dapo": row(
        "mean and std of the other answers only; dual clip at 10",
        _GRPO,
        clip(high=0.28, dual_clip=10.0),
        dynamic_sampling={},
        not_kept="its overlong penalty is the shaping overlong",
    ),
    "gspo": row(
        "mean and std of the other answers only",
        _GRPO,
        clip(3e-4, 4e-4, name="gspo"),
        "seq_mean_token_mean",
        not_kept="its own defaults of both clips are 0.2",
    ),
    "cispo": row(
        "mean and std of the other answers only; the weight is at most 6, as in its recipe",
        _GRPO,
        clip(1.0, 5.0, name="cispo"),
    ),
    "ppo": row(
        "lambda of 0.95, variance with n, higher upper clip and dual clip at 10, as in its example",
        {"name": "gae", "policy_lambda": 0.95, "bessel": False},
        clip(high=0.28, dual_clip=10.0),
        not_kept=_FLOOR,
    ),
    "vapo": row(
        "variance with n",
        {"name": "gae", "value_lambda": 1.0, "adaptive_lambda": 0.05, "bessel": False},
        clip(high=0.28, name="vapo", nll=0.1),
        not_kept=f"{_FLOOR}; the likelihood is averaged over the solved tokens of a microbatch there, and "
        "its dual clip at 10 is not kept",
    ),
    "distillation": row(
        "tokens whose probability differs between engine and trainer are left out",
        "distillation",
        "reinforce",
        correction=[{"name": "icepop", "lowest": 0.2, "highest": 5.0}],
    ),
}
