"""prime-rl, August 2026 (src/prime_rl/trainer/rl/loss.py, src/prime_rl/orchestrator/algo/)."""

from collections.abc import Mapping

from hybridrl.config.frameworks.row import Row, norm, row

_LOSS = {"name": "dppo_tv", "delta_low": 0.2, "delta_high": 0.2, "drift": 1e-3}
_BYPASS = ["bypass"]
_VALUE = "the loss that it reports differs from ours, the gradient does not"
_REGION = "a trust region on probabilities since sampling in place of the clip"

ROWS: Mapping[str, Row] = {
    "grpo": row(
        f"no division by the std; {_REGION}",
        norm(std="none"),
        _LOSS,
        correction=_BYPASS,
        not_kept=f"its length penalty is the shaping relative_length; {_VALUE}",
    ),
    "echo": row(
        "one mean over all tokens of the environment, which count twice as much",
        norm(std="none"),
        _LOSS,
        correction=_BYPASS,
        observations={"coefficient": 0.1, "over": "token"},
        not_kept=f"it trains on messages of tools only, ours are all messages between two answers; {_VALUE}",
    ),
    "ipo": row(
        "as ours: no division by the std, and a symmetric trust region since sampling",
        norm(std="none"),
        "ipo",
        correction=_BYPASS,
    ),
    "max_rl": row(_REGION, {"name": "max_rl", "eps": 0.0}, _LOSS, correction=_BYPASS, not_kept=_VALUE),
    "hierarchical_grpo": row(_REGION, "hierarchical_grpo", _LOSS, correction=_BYPASS, not_kept=_VALUE),
    "spiral": row(
        f"{_REGION}, and token mean",
        "rae",
        _LOSS,
        correction=_BYPASS,
        not_kept=f"its baselines restart at 0 when a run is resumed; {_VALUE}",
    ),
    "opsd": row(
        "tokens whose probability fell by more than 0.2 since sampling are left out",
        "distillation",
        {"name": "ipo", "delta_low": 0.2, "delta_high": 1.0, "drift": 1e-3},
        correction=_BYPASS,
        hint={"field": "demonstration"},
        not_kept="the teacher is the engine's policy at the end of sampling, and the divergence that of the "
        "current policy, which differs after the first optimizer step of a batch",
    ),
    "distillation": row(
        "tokens whose probability fell by more than 0.2 since sampling are left out",
        "distillation",
        {"name": "ipo", "delta_low": 0.2, "delta_high": 1.0, "drift": 1e-3},
        correction=_BYPASS,
        not_kept="the divergence is that of the current policy there, which differs after the first "
        "optimizer step of a batch",
    ),
}
