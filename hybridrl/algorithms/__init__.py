"""Advantage estimators, policy losses, KL and their aggregation: pure tensor functions."""

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.objective import Objective

__all__ = ["Objective", "load_estimator"]
