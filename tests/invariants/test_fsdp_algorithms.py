"""Every estimator and every loss has the same loss and gradient norm on FSDP as on one rank of Megatron."""

from typing import Any

import algorithm_matrix as matrix
import pytest
import trainer_values as values
from trainer_ranks import on_ranks

from hybridrl.config.training import TrainParallel

RELATIVE = 2e-6
SENSITIVE = {"loss topr": 2e-5, "loss vespo": 2e-5, "loss product_clip": 2e-5}
"""Losses that weigh an answer by exp of a sum over its tokens, which multiplies the rounding of each: the
layouts of Megatron are up to 1e-5 apart."""

SHAPES = {
    "dp2": TrainParallel(dp=2),
    "dp3": TrainParallel(dp=3),
    "tp2": TrainParallel(tp=2, dp=1),
    "cp2": TrainParallel(cp=2, dp=1),
    "hsdp 2x2": TrainParallel(dp=4, shard=2),
    "tp2 cp2": TrainParallel(tp=2, cp=2, dp=1),
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """Model, algorithms, and the batch."""
    folders = (tmp_path_factory.mktemp(name) for name in ("policy", "teacher"))
    model, teacher = (values.make_model(folder, "qwen3", seed) for seed, folder in enumerate(folders))
    return model, matrix.algorithms(teacher), *on_ranks(1, matrix.logp, model)[0]


@pytest.fixture(scope="module")
def megatron(job: tuple[Any, ...]) -> dict[str, Any]:
    model, *rest = job
    return on_ranks(1, matrix.gradients, model, TrainParallel(dp=1), "megatron", *rest)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_loss_and_gradient_norm_of_every_algorithm(job, megatron, name: str) -> None:
    model, *rest = job
    shape = SHAPES[name]
    ranks = on_ranks(shape.num_ranks, matrix.gradients, model, shape, "fsdp", *rest)
    for found in ranks:
        assert found == ranks[0]
    for algorithm, steps in megatron.items():
        scale, rel = max(abs(loss) for loss, _ in steps), SENSITIVE.get(algorithm, RELATIVE)
        for (loss, norm), (expected, expected_norm) in zip(ranks[0][algorithm], steps, strict=True):
            # Whitened advantages make the loss a difference of equal sums of size 1.
            assert loss == pytest.approx(expected, abs=max(1e-7, rel * scale)), algorithm
            assert norm == pytest.approx(expected_norm, rel=rel), algorithm
