"""FSDP2 on any number of ranks computes what Megatron does, and each reads the other's checkpoints."""

from pathlib import Path
from typing import Any

import fsdp_scenarios
import numpy as np
import pytest
import reward_model_values as judge
import supervised_values as supervised
import trainer_models
import trainer_scenarios as scenarios
import trainer_values as values
from safetensors.torch import load_file
from trainer_ranks import on_ranks

from hybridrl.batch import Minibatch
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.training import CriticConfig, LoraConfig, OptimizerConfig, TrainParallel

FAMILIES = ("qwen3", "llama_tied", "qwen2")
SLOW = pytest.mark.slow
SHAPES = {
    "x1": TrainParallel(dp=1),
    "x2": TrainParallel(dp=2),
    "x3": TrainParallel(dp=3),
    "tp2": TrainParallel(tp=2, dp=1),
    "cp2 heads": TrainParallel(cp=2, dp=1, cp_exchange="heads"),
    "cp2 keys": TrainParallel(cp=2, dp=1, cp_exchange="keys"),
    "hsdp 2x2": TrainParallel(dp=4, shard=2),
    "copies": TrainParallel(dp=2, shard=1),
    "x2 tp2": TrainParallel(tp=2, dp=2),
    "x2 cp2": TrainParallel(cp=2, dp=2),
    "tp2 cp2": TrainParallel(tp=2, cp=2, dp=1),
}
FAST = ("x1", "x2", "x3", "tp2", "cp2 keys")
EACH = [name if name in FAST else pytest.param(name, marks=SLOW) for name in SHAPES]
STEPS = 3
RELATIVE = 2e-6


def fsdp(**options: Any) -> Any:
    return values.make_actor(**options).model_copy(update={"backend": "fsdp"})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    dense = [values.make_model(folder, family) for family in FAMILIES]
    return [*dense, trainer_models.make_model(folder, "qwen3_moe")]


@pytest.fixture(scope="module")
def megatron(models, tmp_path_factory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("megatron")
    return on_ranks(1, scenarios.train, models, (1, 1, 1), (6,), STEPS, out)[0]


@pytest.fixture(scope="module", params=EACH)
def ranks(request, models, tmp_path_factory) -> list[list[dict[str, Any]]]:
    out, shape = tmp_path_factory.mktemp("fsdp"), SHAPES[request.param]
    if shape.cp_exchange == "heads":  # the first model has one key-value head
        models = models[1:]
    return on_ranks(shape.num_ranks, scenarios.train, models, shape, (6,), STEPS, out, actor=fsdp())


@pytest.fixture(scope="module")
def adapted(models, tmp_path_factory) -> Any:
    """What ranks of any shape and backend find who train adapters."""

    def train(shape: TrainParallel, actor: Any) -> list[list[dict[str, Any]]]:
        out = tmp_path_factory.mktemp("adapted")
        lora = actor.model_copy(update={"lora": LoraConfig(rank=4, alpha=8.0)})
        return on_ranks(shape.num_ranks, scenarios.train, models[:2], shape, (6,), STEPS, out, actor=lora)

    return train


@pytest.fixture(scope="module")
def adapted_megatron(adapted) -> list[dict[str, Any]]:
    return adapted(TrainParallel(dp=1), values.make_actor())[0]


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= RELATIVE * np.abs(expected).max()


def test_log_probabilities_losses_and_gradient_norms_are_megatrons(ranks, megatron) -> None:
    for rank in ranks:
        for found, expected in zip(rank, megatron[-len(rank) :], strict=True):
            assert_close(found["before"], expected["before"])
            assert_same_steps(found["reports"], expected["reports"])


def test_the_first_ratio_is_exactly_one_and_every_rank_reports_the_same(ranks) -> None:
    for rank in ranks:
        for found, first in zip(rank, ranks[0], strict=True):
            assert found["reports"] == first["reports"]
            assert found["reports"][0]["metrics"]["actor/ratio_max_abs_err"] == 0.0
            assert found["reports"][1]["metrics"]["actor/ratio_max_abs_err"] > 0.0


def test_exported_weights_are_megatrons(ranks, megatron) -> None:
    for found, expected in zip(ranks[0], megatron[-len(ranks[0]) :], strict=True):
        one, other = (load_file(run["export"] / "model.safetensors") for run in (found, expected))
        assert one.keys() == other.keys()
        for name, weight in one.items():
            assert_close(weight.numpy(), other[name].numpy())


@pytest.mark.parametrize("name", ["x2", *(pytest.param(n, marks=SLOW) for n in ("tp2", "x2 tp2", "x2 cp2"))])
def test_mixtral_takes_megatrons_steps(tmp_path: Path, name: str) -> None:
    """Its modules have other names than its checkpoint."""
    folder, shape = trainer_models.make_model(tmp_path, "mixtral"), SHAPES[name]
    train, steps = (scenarios.train, [folder]), ((6,), STEPS)
    expected = on_ranks(1, *train, (1, 1, 1), *steps, tmp_path / "megatron")[0][0]
    for rank in on_ranks(shape.num_ranks, *train, shape, *steps, tmp_path / "fsdp", actor=fsdp()):
        found = rank[0]
        assert_close(found["before"], expected["before"])
        assert_same_steps(found["reports"], expected["reports"])
        one, other = (load_file(run["export"] / "model.safetensors") for run in (found, expected))
        assert one.keys() == other.keys()


@pytest.mark.parametrize("name", ["x2", *(pytest.param(n, marks=SLOW) for n in ("x3", "hsdp 2x2", "x2 tp2"))])
def test_adapters_are_trained_as_megatrons(adapted, adapted_megatron, name) -> None:
    for rank in adapted(SHAPES[name], fsdp()):
        for found, expected in zip(rank, adapted_megatron, strict=True):
            assert_same_steps(found["reports"], expected["reports"])
            assert found["reports"][0]["metrics"]["actor/ratio_max_abs_err"] == 0.0
            assert_close(found["after"], expected["after"])
            assert np.abs(found["after"] - found["before"]).max() > 1e-3
            one, other = (load_file(run["export"] / "model.safetensors") for run in (found, expected))
            for weight, merged in other.items():
                assert_close(one[weight].numpy(), merged.numpy())


OPTIONS = {
    "plain": {},
    "recompute": {"recompute": "full"},
    "few logits": {"logits_at_once": 64},
    "offload": {"offload": "all"},
    "gathered once": {"gather": "once"},
    "small layers together": {"least_unit": 2**20},
    "moments on the host": {"keep_on_host": "optimizer"},
    "all on the host": {"keep_on_host": "all"},
    "bf16": {"precision": "bf16"},
}
SOLVED = {"advantage_N": None, "reward_N": np.array([0, 1, 1, 0] * 3, np.float32)}
OPTIMIZER = {"lr": 1e-3, "eps": 1e-4}
ALGORITHMS = {
    "reference": (AlgorithmConfig.model_validate({"kl": {"coefficient": 0.1}}), {}),
    "critic": (AlgorithmConfig(estimator="gae"), SOLVED),
    "process model": (AlgorithmConfig(estimator="prime", process_model={"optimizer": OPTIMIZER}), SOLVED),
}
CRITIC = {"critic": CriticConfig(optimizer=OptimizerConfig(**OPTIMIZER))}


def assert_same_steps(found: Any, expected: Any, rel: float = RELATIVE) -> None:
    for report, other in zip(found, expected, strict=True):
        for name in ("loss", "grad_norm", "lr"):
            assert report[name] == pytest.approx(other[name], rel=rel, abs=1e-8), name


def minibatches(shares: Any) -> list[Minibatch]:
    return [values.make_minibatch(i, rows, values.make_block()) for i, rows in enumerate(shares)]


ROWS = range(12)
LOPSIDED = minibatches([[[ROWS[:3], ROWS[3:8]], [ROWS[8:]]], [[ROWS], []]])


@pytest.fixture(scope="module")
def two(models, tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two ranks found on Qwen3."""
    saved = tmp_path_factory.mktemp("saved")
    args = (models[0], saved, OPTIONS, LOPSIDED, ALGORITHMS, CRITIC)
    return on_ranks(2, fsdp_scenarios.everything, *args)


def test_fsdp_and_megatron_continue_from_each_others_checkpoints(two) -> None:
    for rank in two:
        for backend, found in rank["checkpoints"].items():
            assert_same_steps(found["other's"]["reports"][:1], found["second"]["reports"][:1])
            assert_same_steps(found["other's"]["reports"], found["second"]["reports"], rel=1e-5)
            assert "the checkpoint was made with" in found["other's"]["notes"][0], backend


def test_fsdp_continues_from_its_own_checkpoint_bit_for_bit(two) -> None:
    for rank in two:
        found = rank["checkpoints"]["fsdp"]
        assert found["own"]["reports"] == found["second"]["reports"]
        assert found["own"]["notes"] == []


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in ("plain", "bf16")])
def test_options_that_save_memory_change_no_step(two, name) -> None:
    for rank in two:
        found, plain = rank["options"][name], rank["options"]["plain"]
        for steps, expected in zip(found["played"], plain["played"], strict=True):
            assert_same_steps(steps, expected)


def test_weights_that_are_gathered_once_are_gathered_less_often(two) -> None:
    for rank in two:
        once, usual = (rank["options"][name]["gathers"] for name in ("gathered once", "plain"))
        assert 0 < 3 * once < usual


def test_small_layers_are_gathered_together(two) -> None:
    for rank in two:
        together, usual = (rank["options"][name]["gathers"] for name in ("small layers together", "plain"))
        assert 0 < 3 * together < usual


def test_bf16_takes_nearly_the_steps_of_fp32_and_keeps_fp32_weights(two) -> None:
    for rank in two:
        half, whole = rank["options"]["bf16"], rank["options"]["plain"]
        for report, other in zip(half["played"][0], whole["played"][0], strict=True):
            assert report["loss"] == pytest.approx(other["loss"], abs=2e-2)
            assert report["grad_norm"] == pytest.approx(other["grad_norm"], rel=0.2)
            assert report["grad_norm"] != other["grad_norm"]
        assert half["played"][0][0]["metrics"]["actor/ratio_max_abs_err"] == 0.0
        finer = [w for w in half["weights"].values() if (w.view(np.uint32) & 0xFFFF).any()]
        assert len(finer) == len(half["weights"])  # bf16 has zeros in these bits


def test_ranks_may_have_unequal_numbers_of_microbatches(two, models) -> None:
    whole = minibatches([[[ROWS]], [[ROWS]]])
    alone = on_ranks(1, scenarios.lopsided, models[0], (1, 1, 1), whole, False)[0]
    for rank in two:
        assert_same_steps(rank["lopsided"], alone)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_reference_critic_and_process_model_are_megatrons(two, name) -> None:
    for rank in two:
        found, expected = (rank["roles"][backend][name] for backend in ("fsdp", "megatron"))
        for one, other in zip(found["played"], expected["played"], strict=True):
            assert one["loaded"] == pytest.approx(other["loaded"], rel=1e-5, abs=1e-6)
            for report, reference in zip(one["reports"], other["reports"], strict=True):
                assert report["loss"] == pytest.approx(reference["loss"], rel=RELATIVE, abs=1e-7)
                assert report["grad_norm"] == pytest.approx(reference["grad_norm"], rel=5e-6)
                assert report["metrics"] == pytest.approx(reference["metrics"], rel=1e-4, abs=1e-5)


def test_a_reference_on_dedicated_ranks_is_megatrons(two) -> None:
    for rank in two:
        assert_close(rank["dedicated"]["fsdp"], rank["dedicated"]["megatron"])


def test_training_on_examples_takes_the_steps_of_plain_torch(models, tmp_path) -> None:
    plain = {"sft": list(supervised.plain_sft(models[0], 2)), "rm": list(supervised.plain_rm(models[0], 2))}
    ranks = on_ranks(2, supervised.train, models[0], TrainParallel(dp=2), 2, tmp_path, actor=fsdp())
    for rank in ranks:
        for kind, steps in plain.items():
            for found, expected in zip(rank[kind]["losses"], steps[:-1], strict=True):
                assert found == pytest.approx(expected, rel=RELATIVE), kind
            assert rank[kind]["evaluated"]["train/loss"] == pytest.approx(steps[-1][0], rel=RELATIVE), kind


def test_scores_of_a_reward_model_are_those_of_transformers(models, tmp_path) -> None:
    """The policy is of another family; its steps stay the same."""
    reward_model = judge.make_reward_model(models[2], tmp_path / "judge")
    shapes = [TrainParallel(dp=2), TrainParallel(dp=2)]
    expected = judge.by_transformers(reward_model)
    for rank in on_ranks(2, judge.apart_and_beside, models[0], reward_model, shapes, "fsdp"):
        shared, alone = rank["beside"][True], rank["beside"][False]
        assert shared["played"] == alone["played"]
        for scores in (*rank["apart"], *shared["scores"]):
            np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=1e-5)
