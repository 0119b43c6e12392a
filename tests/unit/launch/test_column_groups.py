"""Dedicated ranks compute what the algorithm needs, or are refused."""

from typing import Any

import pytest

from hybridrl.algorithms.rules import idle_group_errors
from hybridrl.config.run_shape import RunShape
from hybridrl.config.schema import Config
from hybridrl.launch.column_groups import dedicated_columns
from hybridrl.launch.shape import Placement


def config(**sections: Any) -> Config:
    needed = {"model": "m", "data": {"train": "d.jsonl"}, "reward": "exact_match", "run": {"name": "test"}}
    return Config.model_validate({**needed, **sections})


DEDICATED: dict[str, Any] = {"critic": {"parallel": {"pp": 2}}, "reference": {"parallel": {"tp": 2, "dp": 2}}}


def test_each_group_computes_what_is_asked_of_it() -> None:
    kl = {"coefficient": 0.1}
    assert dedicated_columns(config(algorithm={"estimator": "gae"})) == {}
    both = config(algorithm={"estimator": "gae", "kl": kl}, **DEDICATED)
    assert dedicated_columns(both) == {"critic": ("value",), "reference": ("ref_logp",)}
    taught = {"estimator": "distillation", "teacher": "t", "kl": kl}
    found = dedicated_columns(config(algorithm=taught, reference=DEDICATED["reference"]))
    assert found == {"reference": ("ref_logp", "teacher_logp")}


def test_a_loss_that_asks_the_reference_gives_its_ranks_work() -> None:
    assert dedicated_columns(config(algorithm={"loss": "copg"}, reference=DEDICATED["reference"])) == {
        "reference": ("ref_logp",)
    }


@pytest.mark.parametrize("group", ["critic", "reference"])
def test_ranks_that_nobody_asks_are_refused(group: str) -> None:
    (error,) = idle_group_errors(config(**{group: DEDICATED[group]}))
    assert f"{group}.parallel is set, but estimator grpo" in error.what
    assert not list(idle_group_errors(config()))


def test_every_rank_has_a_seat() -> None:
    shape = RunShape.of(config(actor={"parallel": {"tp": 2}}, **DEDICATED))
    assert shape.critic is not None and shape.reference is not None
    assert (shape.trainer_ranks, shape.critic.num_ranks, shape.reference.num_ranks) == (2, 2, 4)
    placement = Placement.of(shape, 2)
    assert (placement.critic, placement.reference) == ((0, 1), (0, 0, 1, 1))
    assert sum(placement.per_node) == 2 + 2 + 4 + 1 + 1


def test_groups_fill_the_gpus_unless_told_otherwise() -> None:
    shape = RunShape.of(config(cluster={"gpus_per_node": 8}, critic={"parallel": {"tp": 2}}))
    assert shape.critic is not None and shape.critic.dp == 4
    assert shape.reference is None


def test_a_policy_that_teaches_itself_has_its_column_on_no_other_ranks() -> None:
    hint = {"estimator": "distillation", "hint": {"field": "solution"}, "kl": {"coefficient": 0.1}}
    found = dedicated_columns(config(algorithm=hint, reference={"parallel": {"tp": 1}}))
    assert found == {"reference": ("ref_logp",)}
    found = dedicated_columns(config(algorithm={**hint, "teacher": "t"}, reference={"parallel": {"tp": 1}}))
    assert found == {"reference": ("ref_logp", "teacher_logp")}
