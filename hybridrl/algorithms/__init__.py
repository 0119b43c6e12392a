"""Advantage estimators, policy losses, KL and their aggregation: pure tensor functions.

`load_estimator` and `Objective` are what a trainer calls. They are imported on first access, so that the
catalog works without torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridrl.algorithms.advantages import load_estimator
    from hybridrl.algorithms.objective import Objective

__all__ = ["Objective", "load_estimator"]


def __getattr__(name: str) -> Any:
    if name == "load_estimator":
        from hybridrl.algorithms.advantages import load_estimator

        return load_estimator
    if name == "Objective":
        from hybridrl.algorithms.objective import Objective

        return Objective
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
