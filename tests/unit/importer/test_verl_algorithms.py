"""What verl's estimators and corrections compute, beyond the tables of their names."""

import math
from pathlib import Path
from typing import Any

import pytest

from hybridrl.config.load import load
from hybridrl.errors import ConfigError
from hybridrl.importer.overrides import Launch, Override
from hybridrl.importer.translation import Translation
from hybridrl.importer.verl import translate
from hybridrl.importer.verl_keys import A, M

LEAST: dict[str, Any] = {f"{M}.path": "m", "data.train_files": "t.parquet"}
RS = "algorithm.rollout_correction.rollout_rs"


def translated(**keys: Any) -> Translation:
    overrides = tuple(Override(key, value, str(value), 1) for key, value in (LEAST | keys).items())
    return translate(Launch("verl.trainer.main_ppo", overrides))


def algorithm(tmp_path: Path, **keys: Any) -> Any:
    path = tmp_path / "imported.yaml"
    path.write_text(translated(**keys).as_yaml("test"))
    return load(path).config.algorithm


def whys(found: Translation) -> str:
    return "\n".join(f"{one.source}: {one.why}" for one in found.no_counterpart)


def test_gpg_counts_answers_with_a_reward_as_verl_does(tmp_path: Path) -> None:
    found = algorithm(tmp_path, **{"algorithm.adv_estimator": "gpg", f"{A}.policy_loss.loss_mode": "gpg"})
    assert found.estimator.options["count"] == "nonzero" and found.loss.name == "reinforce"


def test_the_baseline_of_several_turns_is_that_of_tokens(tmp_path: Path) -> None:
    found = algorithm(tmp_path, **{"algorithm.adv_estimator": "tir_optimal_token_baseline"})
    assert found.estimator.name == "optimal_token_baseline" and found.loss.options["dual_clip"] == 3.0


def test_flash_reinforce_keeps_its_threshold(tmp_path: Path) -> None:
    keys = {
        "algorithm.adv_estimator": "flash_reinforce",
        f"{A}.policy_loss.loss_mode": "flash_reinforce",
        f"{A}.policy_loss.flash_reinforce_kl_threshold": 0.003,
        f"{A}.policy_loss.flash_reinforce_neg_topq": 0.5,
    }
    found = algorithm(tmp_path, **keys)
    assert found.loss.options == {"delta": 0.003} and found.estimator.options["mean"] == "batch"
    assert "every token of a failed answer" in whys(translated(**keys))


GDPO = {"algorithm.adv_estimator": "gdpo", "algorithm.gdpo_reward_keys": ["right", "format"]}


def test_the_weights_of_gdpo_are_in_the_order_of_the_names(tmp_path: Path) -> None:
    found = algorithm(tmp_path, **GDPO, **{"algorithm.gdpo_reward_weights": [2.0, 0.5]})
    assert found.estimator.options["weights"] == [0.5, 2.0]  # format, right
    assert found.estimator.options["whiten"] == "token"


def test_the_parts_of_gdpo_are_said() -> None:
    assert "exactly these parts: right, format" in whys(translated(**GDPO))
    assert "verl refuses gdpo" in whys(translated(**{"algorithm.adv_estimator": "gdpo"}))


@pytest.mark.parametrize("name", ["grpo", "grpo_vectorized", "grpo_passk", "gdpo"])
def test_an_estimator_without_the_std_is_translated_or_listed(tmp_path: Path, name: str) -> None:
    keys = {"algorithm.adv_estimator": name, "algorithm.norm_adv_by_std_in_grpo": False}
    found = algorithm(tmp_path, **keys)
    if name == "gdpo":
        assert "divides every part by its std" in whys(translated(**keys))
    elif name == "grpo_passk":
        assert found.estimator.options["scale_by_std"] is False
    else:
        assert found.estimator.options["std"] == "none"


@pytest.mark.parametrize(
    ("options", "bounds", "expected"),
    [
        ("seq_mean_k1", "0.999_1.001", [("k1", "sequence_mean", math.log(0.999), math.log(1.001))]),
        ("token_k1", 2.0, [("k1", "token", -math.log(2), math.log(2))]),
        ("seq_sum_k3", 0.02, [("k3", "sequence_sum", None, 0.02)]),
        (
            "token_k1,seq_max_k2",
            "0.6_1.6,2.5",
            [("k1", "token", math.log(0.6), math.log(1.6)), ("k2", "sequence_max", None, 2.5)],
        ),
        ("token_k2, seq_mean_k3", 0.1, [("k2", "token", None, 0.1), ("k3", "sequence_mean", None, 0.1)]),
    ],
)
def test_rejections_keep_their_bounds(
    tmp_path: Path, options: str, bounds: Any, expected: list[tuple[str, str, float | None, float]]
) -> None:
    steps = algorithm(tmp_path, **{RS: options, f"{RS}_threshold": bounds}).correction
    found = [(one["divergence"], one["level"], one.get("lowest"), one["highest"]) for one in steps]
    assert found == [(*names, pytest.approx(low), pytest.approx(high)) for *names, low, high in expected]


@pytest.mark.parametrize(
    ("options", "bounds"), [("token_k1", "x"), ("token_k3", "0.1_0.2"), ("token_k1,token_k2", "1,2,3")]
)
def test_bounds_that_verl_refuses_are_refused(options: str, bounds: str) -> None:
    with pytest.raises(ConfigError, match="rollout_rs_threshold"):
        translated(**{RS: options, f"{RS}_threshold": bounds})


def test_a_rejection_of_an_older_verl_is_listed() -> None:
    found = translated(**{RS: "geometric", f"{RS}_threshold": 1.001})
    assert f"{RS}=geometric" in whys(found) and f"{RS}_threshold" in whys(found)
