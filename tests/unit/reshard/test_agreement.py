"""Checksums of the two sides of a swap, and plans of its ranks: whatever differs is named."""

import pytest
from model_values import tiny

from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.reshard.agreement import difference, disagreement, expected, plan_fields
from hybridrl.reshard.plan import Job


def test_shares_of_a_tensor_add_up_modulo_two_to_the_64() -> None:
    shares = [{(0, 0, "a"): 2**64 - 1, (0, 0, "b"): 5}, {(0, 0, "a"): 3}]
    assert expected(shares) == {(0, 0, "a"): 2, (0, 0, "b"): 5}


def test_tensors_that_a_delta_leaves_alone_keep_the_checksums_of_its_base() -> None:
    base = {(0, 0, "a"): 1, (0, 0, "b"): 5}
    assert expected([{(0, 0, "a"): 7}, {(0, 0, "a"): 1}], base) == {(0, 0, "a"): 8, (0, 0, "b"): 5}
    assert base == {(0, 0, "a"): 1, (0, 0, "b"): 5}


def test_equal_sides_pass() -> None:
    assert difference({(0, 0, "a"): 1, (1, 0, "a"): 1}, {(1, 0, "a"): 1, (0, 0, "a"): 1}) is None


def test_a_tensor_that_differs_is_named_with_its_engine_and_rank() -> None:
    error = difference({(0, 0, "a"): 1, (1, 0, "b"): 1}, {(0, 0, "a"): 1, (1, 0, "b"): 2})
    assert str(error) == "1 of 2 tensors differ after the swap  (first: engine 1, rank 0, b)"


def test_a_tensor_that_nobody_wrote_is_an_error() -> None:
    assert "left out [(0, 0, 'b')]" in str(difference({(0, 0, "a"): 1}, {(0, 0, "a"): 1, (0, 0, "b"): 2}))


def job(tp: int = 1, engine_tp: int = 1, **changes: object) -> Job:
    spec = tiny(**changes)
    return Job(MegatronLayout(spec, tp=tp), (SGLangLayout(spec), SGLangLayout(spec, tp=engine_tp)))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (job(tp=2), "source.tp is 1 on [0, 2], 2 on [1]"),
        (job(engine_tp=2), "targets.1.tp is 1 on [0, 2], 2 on [1]"),
        (job(vocab_size=38), "targets.1.spec.vocab_size is 37 on [0, 2], 38 on [1]"),
        (job(), "from equal layouts"),
    ],
)
def test_ranks_that_planned_differently_learn_where_their_layouts_differ(other: Job, told: str) -> None:
    jobs = {0: job(), 1: other, 2: job()}
    error = disagreement({0: "h", 1: "g", 2: "h"}, {rank: plan_fields(j) for rank, j in jobs.items()})
    assert error.what == "trainer ranks [0, 2] and [1] planned different swaps"
    assert told in error.where and "num_layers" not in error.where
