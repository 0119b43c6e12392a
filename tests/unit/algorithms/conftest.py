"""Random ragged batches, and ranks as threads, for the tests of the algorithms."""

from collections.abc import Callable

import pytest
from torch import Tensor

from hybridrl.algorithms import samples
from hybridrl.algorithms.base import Known, Metrics, OneRank, Reduce, Totals
from hybridrl.algorithms.objective import Objective
from hybridrl.algorithms.samples import RaggedBatch


@pytest.fixture
def ragged() -> Callable[..., RaggedBatch]:
    """ragged(seed, dtype, sizes): see samples.ragged_batch."""
    return samples.ragged_batch


@pytest.fixture
def run_ranks() -> Callable[[int, Callable], list]:
    """run_ranks(n, f): [f(0, reduce), ..., f(n - 1, reduce)], at the same time."""
    return samples.run_ranks


@pytest.fixture
def prepared() -> Callable[..., dict[str, Tensor]]:
    """prepared(objective, batch): the columns of a batch and those that the objective makes of them."""

    def run(
        objective: Objective,
        batch: RaggedBatch,
        part: RaggedBatch | None = None,
        reduce: Reduce | None = None,
    ) -> dict[str, Tensor]:
        part = part or batch
        columns = {n: part.columns[n] for n in objective.columns}
        if not objective.prepares:
            return columns
        known = Known(3, batch.reward_N, batch.group_N, part.columns["advantage"], part.tokens, columns)
        return columns | objective.prepare(known, reduce or OneRank()).columns

    return run


@pytest.fixture
def evaluate() -> Callable[..., tuple[Tensor, Metrics]]:
    """evaluate(objective, columns, batch, logp_T): the objective's share of a batch, or of a part of one."""

    def run(
        objective: Objective, columns: dict, batch: RaggedBatch, logp_T: Tensor, totals: Totals | None = None
    ):
        advantage_T, totals = batch.columns["advantage"], totals or batch.totals
        scalar, metrics = objective(logp_T, None, columns, advantage_T, batch.tokens, totals)
        # A loss of heads alone has the gradient 0 by the sampled tokens.
        return (scalar if scalar.requires_grad else scalar + 0 * logp_T[batch.mask_T].sum()), metrics

    return run
