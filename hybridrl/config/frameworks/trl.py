"""TRL 1.16 and its main branch of July 2026: GRPOTrainer with its loss types, RLOOTrainer, GMPO."""

from collections.abc import Mapping

from hybridrl.config.frameworks.row import Row, clip, kl, norm, row

_GRPO = norm(eps=1e-4)
_KL = kl("k3_unbiased", "loss")
_EPS = "eps of 1e-4"
_MASKED = (
    "with vLLM it also leaves out answers whose probability differs between engine and trainer (correction "
    "sequence_mask, highest 3)"
)

ROWS: Mapping[str, Row] = {
    "grpo": row(
        f"{_EPS}: below 0.1 % with rewards of 0 and 1, more with fine-grained ones; bias-corrected KL (since "
        "1.10)",
        _GRPO,
        clip(),
        kl=_KL,
        not_kept=_MASKED,
    ),
    "dr_grpo": row(
        "bias-corrected KL (since 1.10)",
        norm(std="none"),
        clip(),
        "seq_mean_token_sum_norm",
        kl=_KL,
        not_kept=_MASKED,
    ),
    "lite_ppo": row(_EPS, norm(std="batch", eps=1e-4), clip(), kl=_KL, not_kept=_MASKED),
    "gdpo": row(
        _EPS,
        {"name": "gdpo", "eps": 1e-4},
        clip(),
        kl=_KL,
        not_kept=f"1e-4 is added to the std of the batch as well; {_MASKED}",
    ),
    "rloo": row(
        "clip on the ratio of the whole answer; the KL of the answer (k1) is subtracted from its reward",
        norm(mean="others", std="none"),
        clip(name="product_clip"),
        "seq_mean_token_sum",
        kl=kl("k1", "reward", coefficient=0.05),
    ),
    "dapo": row(_EPS, _GRPO, clip(high=0.28), kl=_KL, not_kept=f"it has no dynamic sampling; {_MASKED}"),
    "gspo": row(
        _EPS,
        _GRPO,
        clip(3e-4, 4e-4, name="gspo"),
        "seq_mean_token_mean",
        kl=_KL,
        not_kept=f"its own default of both clips is 0.2; its KL is weighed by the answer's ratio; {_MASKED}",
    ),
    "luspo": row(
        _EPS,
        _GRPO,
        clip(3e-4, 4e-4, name="luspo"),
        "seq_mean_token_sum",
        kl=_KL,
        not_kept=f"its own default of both clips is 0.2; its KL is weighed by the answer's ratio; {_MASKED}",
    ),
    "cispo": row(
        f"{_EPS}; the weight is at most 5", _GRPO, clip(1.0, 4.0, name="cispo"), kl=_KL, not_kept=_MASKED
    ),
    "sapo": row(_EPS, _GRPO, "sapo", "seq_mean_token_mean", kl=_KL, not_kept=_MASKED),
    "vespo": row(
        f"{_EPS}; the weight counts from sampling, as it does there with vLLM",
        _GRPO,
        {"name": "vespo", "since": "sampling"},
        kl=_KL,
    ),
    "gmpo": row(
        f"{_EPS}; KL (k3) without correction",
        _GRPO,
        clip(0.4, 0.4, name="gmpo"),
        "seq_mean_token_mean",
        kl=kl("k3", "loss"),
    ),
}
