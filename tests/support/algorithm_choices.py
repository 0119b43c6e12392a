"""Many choices of the section `algorithm`, for tests of what holds for all of them."""

import itertools
from collections.abc import Iterator
from typing import Any

from hybridrl import registry
from hybridrl.algorithms.packages import PACKAGES
from hybridrl.config.presets import PRESETS
from hybridrl.config.schema import AlgorithmConfig

ESTIMATORS = registry.names(PACKAGES["estimator"])
LOSSES = registry.names(PACKAGES["policy_loss"])

_KL: tuple[dict[str, Any], ...] = (
    {},
    {"coefficient": 0.1},
    {"coefficient": 0.1, "in": "reward"},
    {"coefficient": 0.1, "estimator": "k3_engine"},
    {"coefficient": 0.1, "estimator": "k3_unbiased", "in": "reward"},
    {"coefficient": 0.1, "target": 0.01},
)
_BESIDE: tuple[dict[str, Any], ...] = (
    {},
    {"correction": ["bypass"]},
    {"correction": [{"name": "token_is", "cap": 2.0}]},
    {"entropy_top_share": 0.2},
)
_ALONE: tuple[dict[str, Any], ...] = (
    {"correction": [{"name": "reject", "divergence": "binary_kl"}]},
    {"teacher_coefficient": 0.5},
)
"""What asks for columns that do not depend on the KL."""

_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "reinforce_plus_plus": [{"discount": 0.9}],
    "optimal_token_baseline": [{"importance_cap": 2.0}, {"level": "turn"}],
    "vespo": [{"since": "sampling"}],
    "decoupled_ppo": [{"near": "interpolated"}],
}
"""Options that columns depend on."""


def choices() -> Iterator[dict[str, Any]]:
    """Every preset of a paper, estimator and loss, with KL in every place, and with what else asks for
    columns; and the rows of other frameworks, which have the same plug-ins, as they are."""
    rows = [dict(PRESETS[name].algorithm) for name in PRESETS if "/" not in name]
    rows += [{"estimator": {"name": e, **o}} for e in ESTIMATORS for o in ({}, *_OPTIONS.get(e, ()))]
    rows += [{"loss": {"name": name, **o}} for name in LOSSES for o in ({}, *_OPTIONS.get(name, ()))]
    for row, kl, beside in itertools.product(rows, _KL, _BESIDE):
        yield {**row, "kl": row.get("kl", {}) | kl, **beside}
    yield from ({**row, **alone} for row, alone in itertools.product(rows, _ALONE))
    yield from (dict(PRESETS[name].algorithm) for name in PRESETS if "/" in name)


def algorithms() -> Iterator[AlgorithmConfig]:
    for choice in choices():
        yield AlgorithmConfig.model_validate(choice)
