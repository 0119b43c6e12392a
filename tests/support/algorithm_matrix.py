"""Loss and gradient norm of many algorithms on one recorded batch, on trainer ranks of any backend."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import trainer_scenarios as scenarios
import trainer_values as values
from algorithm_choices import ESTIMATORS, LOSSES

from hybridrl.batch import TokenBlock
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.training import TrainParallel
from hybridrl.verify.layouts import Row
from hybridrl.verify.measure import MOVED
from hybridrl.verify.recorded import make_tokens, record

UNFED = {"gigpo", "step_reinforce", "rae", "hierarchical_grpo"}
"""Estimators that need turns and roles, which this batch does not have; trainer_turns.py has them."""


def algorithms(teacher: Path) -> dict[str, AlgorithmConfig]:
    """Every estimator and every loss, and a KL term in the loss and in the reward."""
    taught = {"teacher": str(teacher)}
    rows: dict[str, dict[str, Any]] = {
        f"estimator {name}": {"estimator": name} | (taught if name == "distillation" else {})
        for name in ESTIMATORS
        if name not in UNFED
    }
    rows |= {
        f"loss {name}": {
            "loss": {"name": name, **_OPTIONS.get(name, {})},
            "aggregate": _AGGREGATES.get(name, "token_mean"),
        }
        for name in LOSSES
    }
    rows["kl in loss"] = {"kl": {"coefficient": 0.1}}
    rows["kl in reward"] = {"estimator": "reinforce_plus_plus", "kl": {"coefficient": 0.1, "in": "reward"}}
    rows["entropy"] = {"entropy_coefficient": 0.01}
    return {name: AlgorithmConfig.model_validate(row | {"guards": "off"}) for name, row in rows.items()}


_OPTIONS: dict[str, dict[str, Any]] = {"dro": {"beta": 0.5}}
_AGGREGATES = {
    "a_star_po": "seq_mean_token_sum",
    "copg": "seq_mean_token_sum",
    "luspo": "seq_mean_token_sum",
    "gmpo": "seq_mean_token_mean",
    "gspo": "seq_mean_token_mean",
    "flash_reinforce": "seq_mean_token_mean",
    "product_clip": "seq_mean_token_sum",
}
"""Aggregates of the losses that have no meaning with token_mean."""


def logp(rank: int, rendezvous: Callable[[], str], folder: Path) -> tuple[TokenBlock, np.ndarray]:
    """The tokens of the batch, and their log-probabilities under the model."""
    block = make_tokens(values.VOCAB, 4, seed=0)
    with scenarios.policy(rank, rendezvous, folder, (1, 1, 1)) as trained:
        return block, trained.logp(block)


def gradients(
    rank: int,
    rendezvous: Callable[[], str],
    folder: Path,
    shape: TrainParallel,
    backend: str,
    rows: dict[str, AlgorithmConfig],
    block: TokenBlock,
    logp_T: np.ndarray,
) -> dict[str, list[tuple[float, float]]]:
    """(loss, gradient norm) of each minibatch, at weights that have moved since the batch was scored."""
    actor = values.make_actor().model_copy(update={"backend": backend})
    row = Row("packed", frozenset(), shape, partition="packed")
    found = {}
    for name, algorithm in rows.items():
        batch = record(algorithm, block, logp_T, seed=0).for_ranks(row)
        with scenarios.policy(rank, rendezvous, folder, shape, actor=actor, algorithm=algorithm) as trained:
            trained.load(batch)
            for tensor in trained.tensors().values():
                tensor.mul_(MOVED)
            found[name] = [trained.gradients(m.index)[:2] for m in batch.minibatches]
    return found
