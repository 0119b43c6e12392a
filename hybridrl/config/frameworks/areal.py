"""AReaL, May 2026 (areal/utils/functional/functional.py, NormConfig, examples/math/gsm8k_*.yaml)."""

from collections.abc import Mapping

from hybridrl.config.frameworks.row import Row, clip, norm, row

_STALE = [{"name": "icepop", "lowest": 0.0, "highest": 5.0}]
_WHITE = "whitened over all trained tokens"
_EPS = "1e-5 is added to the std of the batch there"
_SCALED = f"{_EPS}; its examples scale rewards by 10, which divides the eps of a group by 10"
_LEFT_OUT = "tokens with 5 times the engine's probability are left out"

ROWS: Mapping[str, Row] = {
    "grpo": row(
        f"{_WHITE} after the group; {_LEFT_OUT}",
        norm(eps=1e-5, whiten="token"),
        clip(0.4, 0.4),
        correction=_STALE,
        not_kept=_SCALED,
    ),
    "dr_grpo": row(
        f"{_WHITE}; token mean; {_LEFT_OUT}",
        norm(std="none", whiten="token"),
        clip(0.4, 0.4),
        correction=_STALE,
        not_kept=_EPS,
    ),
    "lite_ppo": row(
        f"{_WHITE}, which undoes the division by the batch's std; {_LEFT_OUT}",
        norm(std="none", whiten="token"),
        clip(0.4, 0.4),
        correction=_STALE,
        not_kept=_EPS,
    ),
    "rloo": row(
        f"{_WHITE}; {_LEFT_OUT}",
        norm(mean="others", std="none", whiten="token"),
        clip(0.4, 0.4),
        correction=_STALE,
        not_kept=_EPS,
    ),
    "gspo": row(
        f"{_WHITE} after the group; token mean; {_LEFT_OUT}",
        norm(eps=1e-5, whiten="token"),
        clip(0.4, 0.4, level="sequence"),
        correction=_STALE,
        not_kept=f"{_SCALED}; the gradient of a token has the mean weight of its answer there, here its own",
    ),
    "dapo": row(
        f"{_WHITE} after the group; {_LEFT_OUT}",
        norm(eps=1e-5, whiten="token"),
        clip(high=0.28),
        correction=_STALE,
        dynamic_sampling={},
        not_kept=f"{_SCALED}; its overlong penalty is the shaping overlong",
    ),
    "sapo": row(
        f"{_WHITE} after the group; token mean; around the policy that sampled",
        norm(eps=1e-5, whiten="token"),
        "sapo",
        correction=["bypass"],
        not_kept=_SCALED,
    ),
    "ppo": row(f"{_LEFT_OUT}", "gae", clip(0.4, 0.4), correction=_STALE, not_kept=_EPS),
}
