"""verl's launches become configs that compute the same, and everything that was said is accounted for."""

from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from hybridrl.config.load import load
from hybridrl.config.rules import RuleContext, check
from hybridrl.errors import ConfigError, DataError, HybridRLError, ModelError, ResourceError
from hybridrl.importer.overrides import Launch, Override, read
from hybridrl.importer.translation import Translation
from hybridrl.importer.verl import translate
from hybridrl.importer.verl_keys import ESTIMATORS, KL, LOSSES, PRESETS, A, M, R
from hybridrl.rewards.plugin import load_reward

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.sh"))
ROWS = 7473
LEAST: dict[str, Any] = {f"{M}.path": "m", "data.train_files": "t.parquet"}


def launch(keys: dict[str, Any], config_name: str = "") -> Launch:
    overrides = tuple(Override(key, value, str(value), 1) for key, value in (LEAST | keys).items())
    return Launch("verl.trainer.main_ppo", overrides, config_name)


def translated(rows: int | None = None, **keys: Any) -> Translation:
    return translate(launch({key.replace("__", "."): value for key, value in keys.items()}), rows)


def config(tmp_path: Path, found: Translation) -> Any:
    path = tmp_path / "imported.yaml"
    path.write_text(found.as_yaml("test"))
    return load(path).config


def whys(found: Translation) -> str:
    return "\n".join(f"{one.source}: {one.why}" for one in found.no_counterpart)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_translate_to_the_golden_config(script: Path) -> None:
    found = translate(read(script, {"HOME": "/home/me"}), ROWS)
    assert found.as_yaml(script.name) == script.with_suffix(".yaml").read_text("utf-8")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_golden_configs_pass_the_check_but_for_files_and_machine(script: Path) -> None:
    context = RuleContext(num_gpus=8, spec=None)
    errors = check(load(script.with_suffix(".yaml")), context)
    assert not [one for one in errors if not isinstance(one, DataError | ModelError | ResourceError)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_no_override_goes_unread(script: Path) -> None:
    read_in = read(script, {"HOME": "/home/me"})
    before = outcome(read_in)
    for at, one in enumerate(read_in.overrides):
        others = [
            replace(read_in, overrides=(*read_in.overrides[:at], planted, *read_in.overrides[at + 1 :]))
            for planted in (Override(one.key, value, str(value), 1) for value in ("nonsense", False, True))
        ]
        assert any(outcome(other) != before for other in others), one.key


def outcome(read_in: Launch) -> Any:
    try:
        return translate(read_in, ROWS).as_dict()
    except ConfigError as error:
        return str(error)


def test_batch_sizes_are_prompts(tmp_path: Path) -> None:
    found = translated(
        **{"data__train_batch_size": 512, f"{A}.ppo_mini_batch_size": 128, f"{R}.n": 16, f"{A}.ppo_epochs": 2}
    )
    batch = config(tmp_path, found).batch
    assert (batch.prompts_per_step, batch.minibatch_prompts, batch.epochs) == (512, 128, 2)


def test_what_a_script_leaves_out_has_verls_default(tmp_path: Path) -> None:
    made = config(tmp_path, translated(**{"algorithm.adv_estimator": "grpo", f"{R}.n": 8}))
    assert made.batch.prompts_per_step == 1024 and made.batch.minibatch_prompts == 256
    assert made.actor.optimizer.betas == (0.9, 0.999) and made.actor.optimizer.weight_decay == 0.01
    assert made.rollout.max_prompt_tokens == 512 and made.rollout.max_response_tokens == 512
    assert made.rollout.memory_fraction == 0.5 and made.rollout.parallel.tp == 2
    assert made.run.evaluate_every == 0 and made.actor.recompute == "full"
    assert made.algorithm.loss.options["dual_clip"] == 3.0 and made.algorithm.aggregate == "token_mean"


def test_warmup_becomes_optimizer_steps(tmp_path: Path) -> None:
    keys = {"data.train_batch_size": 512, f"{A}.ppo_mini_batch_size": 128, f"{A}.optim.lr_warmup_steps": 10}
    assert config(tmp_path, translated(**keys)).actor.optimizer.warmup_steps == 40


def test_epochs_become_steps_by_the_rows_of_the_file(tmp_path: Path) -> None:
    keys = {"data.train_batch_size": 1000, "trainer.total_epochs": 15, f"{A}.ppo_mini_batch_size": 1000}
    assert config(tmp_path, translated(7473, **keys)).run.steps == 105
    assert "--prompts ROWS" in whys(translated(**keys))


def test_a_share_of_warmup_needs_the_steps(tmp_path: Path) -> None:
    keys = {f"{A}.optim.lr_warmup_steps_ratio": 0.1}
    steps = {"trainer.total_training_steps": 200}
    assert config(tmp_path, translated(**keys, **steps)).actor.optimizer.warmup_steps == 20 * 4
    assert "warmup_steps needs run.steps" in whys(translated(**keys))


def test_microbatches_of_samples_become_tokens(tmp_path: Path) -> None:
    keys = {
        f"{A}.ppo_micro_batch_size_per_gpu": 8,
        "data.max_prompt_length": 512,
        "data.max_response_length": 1024,
    }
    assert config(tmp_path, translated(**keys)).actor.microbatch_tokens == 8 * 1536
    dynamic = {f"{A}.use_dynamic_bsz": True, f"{A}.ppo_max_token_len_per_gpu": 9000}
    assert config(tmp_path, translated(**keys, **dynamic)).actor.microbatch_tokens == 9000


def test_a_microbatch_holds_the_longest_trajectory(tmp_path: Path) -> None:
    keys = {f"{A}.use_dynamic_bsz": True, f"{A}.ppo_max_token_len_per_gpu": 100}
    assert config(tmp_path, translated(**keys)).actor.microbatch_tokens == 1024


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, (0.0, "loss")),
        ({f"{A}.kl_loss_coef": 0.5}, (0.0, "loss")),
        ({f"{A}.use_kl_loss": True, f"{A}.kl_loss_coef": 0.5}, (0.5, "loss")),
        ({"algorithm.use_kl_in_reward": True, "algorithm.kl_ctrl.kl_coef": 0.2}, (0.2, "reward")),
        ({"algorithm.use_kl_in_reward": True, f"{A}.use_kl_loss": True}, (0.001, "loss")),
    ],
)
def test_kl_counts_where_it_is_switched_on(tmp_path: Path, keys: dict, expected: tuple) -> None:
    kl = config(tmp_path, translated(**{"algorithm.adv_estimator": "grpo"}, **keys)).algorithm.kl
    assert (kl.coefficient, kl.place) == expected


@pytest.mark.parametrize(("theirs", "ours"), KL.items())
def test_kl_estimators_keep_their_form(tmp_path: Path, theirs: str, ours: str) -> None:
    keys = {f"{A}.use_kl_loss": True, f"{A}.kl_loss_type": theirs}
    assert config(tmp_path, translated(**keys)).algorithm.kl.estimator == ours


@pytest.mark.parametrize("estimator", sorted({*PRESETS, *ESTIMATORS} - {"gdpo"}))
def test_estimators_have_verls_loss(tmp_path: Path, estimator: str) -> None:
    found = translated(**{"algorithm.adv_estimator": estimator, f"{A}.clip_ratio_high": 0.28})
    algorithm = config(tmp_path, found).algorithm
    assert algorithm.loss.options == {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0}
    assert algorithm.aggregate == "token_mean" and not whys(found).count("no such estimator")


@pytest.mark.parametrize("mode", LOSSES)
def test_losses_have_their_options(tmp_path: Path, mode: str) -> None:
    keys = {"algorithm.adv_estimator": "grpo", f"{A}.policy_loss.loss_mode": mode}
    given = {key: 0.3 for key, (_, default) in LOSSES[mode].options.items() if default is None}
    loss = config(tmp_path, translated(**keys, **given)).algorithm.loss
    assert loss.name == LOSSES[mode].name
    options = {option: default or 0.3 for option, default in LOSSES[mode].options.values()}
    assert loss.options == {**options, **LOSSES[mode].always}


def test_without_the_std_grpo_is_dr_grpo(tmp_path: Path) -> None:
    keys = {"algorithm.adv_estimator": "grpo", "algorithm.norm_adv_by_std_in_grpo": False}
    algorithm = config(tmp_path, translated(**keys)).algorithm
    assert algorithm.estimator.options["std"] == "none" and algorithm.aggregate == "token_mean"


def test_a_clip_ratio_that_verl_never_reads_is_said() -> None:
    assert "take precedence" in whys(translated(**{f"{A}.clip_ratio": 0.3}))


def test_a_critic_comes_with_gae_only(tmp_path: Path) -> None:
    keys = {"critic.optim.lr": 3e-5}
    assert config(tmp_path, translated(**keys)).critic.optimizer.lr == 3e-5
    with_grpo = translated(**keys, **{"algorithm.adv_estimator": "grpo"})
    assert config(tmp_path, with_grpo).critic.optimizer.lr == 1e-5
    assert "no critic" in " ".join(one.why for one in with_grpo.ignored)


def test_megatron_keeps_its_layout(tmp_path: Path) -> None:
    keys = {f"{A}.megatron.tensor_model_parallel_size": 4, f"{A}.megatron.pipeline_model_parallel_size": 2}
    parallel = config(tmp_path, translate(launch(keys, "ppo_megatron_trainer"))).actor.parallel
    assert (parallel.tp, parallel.pp) == (4, 2)


def test_megatron_keeps_its_other_sizes_too(tmp_path: Path) -> None:
    sizes = {"virtual_pipeline_model": 3, "context": 2, "expert_model": 8, "expert_tensor": 2}
    keys = {f"{A}.megatron.{name}_parallel_size": size for name, size in sizes.items()}
    keys |= {f"{A}.megatron.pipeline_model_parallel_size": 2, f"{R}.expert_parallel_size": 4}
    lines = {line.key: line.value for line in translate(launch(keys, "ppo_megatron_trainer")).translated}
    assert [lines[f"actor.parallel.{axis}"] for axis in ("vpp", "cp", "ep", "etp")] == [3, 2, 8, 2]
    assert lines["rollout.parallel.ep"] == 4


@pytest.mark.parametrize(("mode", "ours"), [("R2", "old_logp"), ("R3", "rollout"), ("disabled", "none")])
def test_routers_are_replayed_as_in_verl(tmp_path: Path, mode: str, ours: str) -> None:
    found = translated(**{f"{A}.router_replay.mode": mode})
    assert config(tmp_path, found).actor.moe.router_replay == ours
    assert "router_replay" not in whys(found)


@pytest.mark.parametrize(("name", "engine"), [("vllm", "vllm"), ("sglang", "sglang"), ("trtllm", "sglang")])
def test_the_engine_stays_the_scripts(tmp_path: Path, name: str, engine: str) -> None:
    found = translate(launch({f"{R}.name": name}))
    rollout = config(tmp_path, found).rollout
    assert rollout.engine == engine and (rollout.python is not None) == (engine == "vllm")
    assert ("rollout.engine knows sglang and vllm" in whys(found)) == (name == "trtllm")


@pytest.mark.parametrize("section", ["lora_", "lora."])
def test_adapters_keep_rank_and_alpha(tmp_path: Path, section: str) -> None:
    keys = {f"{M}.{section}rank": 8, f"{M}.{section}alpha": 16}
    lora = config(tmp_path, translated(**keys)).actor.lora
    assert lora is not None and (lora.rank, lora.alpha) == (8, 16.0)


@pytest.mark.parametrize(
    "key",
    [
        f"{R}.top_p",
        "reward_model.enable",
        f"{R}.data_parallel_size",
        "data.truncation",
    ],
)
def test_what_changes_the_result_is_never_ignored(key: str) -> None:
    assert key in whys(translated(**{key: 7}))


def test_a_switch_that_is_off_changes_nothing() -> None:
    found = translated(**{f"{R}.multi_turn.enable": False, f"{M}.lora_rank": 0, "reward_model.enable": False})
    assert f"{R}.multi" not in whys(found) and "lora" not in whys(found) and "enable" not in whys(found)


def test_an_unknown_key_is_said() -> None:
    assert "trainer.frobnicate=1: not a key" in whys(translated(**{"trainer.frobnicate": 1}))


def test_a_value_that_only_a_run_could_tell_is_said() -> None:
    unknown = Override("data.train_batch_size", "$N", "$N", 3, "$N")
    found = translate(Launch("", (*launch({}).overrides, unknown)))
    assert "data.train_batch_size=$N: only a run" in whys(found)


@pytest.mark.parametrize("key", LEAST)
def test_without_model_or_data_nothing_is_written(key: str) -> None:
    rest = tuple(one for one in launch({}).overrides if one.key != key)
    with pytest.raises(ConfigError, match=key):
        translate(Launch("", rest))


@pytest.mark.parametrize("key", [f"{A}.optim.lr", f"{A}.clip_ratio_c", "trainer.total_training_steps"])
def test_text_in_place_of_a_number_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        translated(**{key: "many"})


def test_no_override_is_left_out_of_the_report() -> None:
    for script in SCRIPTS:
        found = translate(read(script, {"HOME": "/home/me"}), ROWS).as_dict()
        said = "\n".join(
            one["from"]
            for part in ("translated", "no_counterpart", "ignored", "no_line")
            for one in found[part]
        )
        assert not [
            one.key for one in read(script, {}).overrides if f"{one.key}=" not in said.replace(": ", "=")
        ]


@pytest.mark.parametrize(
    "key", ["max_turns", "ppo_epochs", "algorithm", "actor_rollout_ref.actor.ppo_epoch", "critic.ppo_epochs2"]
)
def test_a_key_that_begins_like_another_is_listed(key: str) -> None:
    found = translated(**{key: 3, f"{A}.ppo_epochs": 1, "max_turns2": 1})
    assert f"{key}=3" in [one.source for one in (*found.no_counterpart, *found.ignored, *found.no_line)]


def test_an_earlier_value_of_a_key_is_said() -> None:
    launched = launch({"algorithm.adv_estimator": "grpo"})
    twice = (*launched.overrides, Override(f"{R}.n", 4, "4", 2), Override(f"{R}.n", 6, "6", 3))
    found = translate(Launch("", twice))
    assert "a later actor_rollout_ref.rollout.n takes its place" in [one.why for one in found.ignored]
    assert found.tree()["algorithm"]["samples_per_prompt"] == 6


@pytest.mark.parametrize(
    ("name", "is_said"), [("ppo_trainer", False), ("ppo_megatron_trainer.yaml", False), ("mine", True)]
)
def test_the_named_config_is_listed(name: str, is_said: bool) -> None:
    assert ("--config-name=mine" in whys(translate(launch({}, name)))) == is_said


@pytest.mark.parametrize(
    "key", ["ppo_epochs", "loss_agg_mode", "ppo_mini_batch_size", "grad_clip", "optim.min_lr"]
)
def test_keys_of_a_critic_are_ignored_only_without_one(key: str) -> None:
    keys = {f"critic.{key}": 4}
    assert f"critic.{key}=4" in whys(translated(**keys))
    without = translated(**keys, **{"algorithm.adv_estimator": "grpo"})
    assert {one.source: one.why for one in without.ignored}[f"critic.{key}=4"].endswith("no critic")


@pytest.mark.parametrize(
    ("keys", "ignored"),
    [
        ({"trainer.total_epochs": 15}, False),
        ({"trainer.total_epochs": 15, "trainer.total_training_steps": 50}, True),
        ({"algorithm.kl_ctrl.kl_coef": 0.001}, False),
        ({"algorithm.kl_ctrl.kl_coef": 0.001, "algorithm.use_kl_in_reward": False}, True),
        ({"algorithm.kl_ctrl.kl_coef": 0.001, f"{A}.use_kl_loss": True}, True),
    ],
)
def test_ignored_is_said_only_of_what_has_no_effect(keys: dict[str, Any], ignored: bool) -> None:
    found = translated(**keys)
    key = next(iter(keys))
    assert any(one.source.startswith(key) for one in found.ignored) == ignored
    assert (key in whys(found)) == (not ignored)


@pytest.mark.parametrize(
    ("mode", "option"), [("dppo_tv", "max_ratio"), ("dppo_kl", "max_ratio"), ("vanilla", "dual_clip")]
)
@pytest.mark.parametrize("bound", [3.0, 20.0])
def test_the_bound_of_the_ratio_is_verls(tmp_path: Path, mode: str, option: str, bound: float) -> None:
    keys = {f"{A}.policy_loss.loss_mode": mode} | ({f"{A}.clip_ratio_c": bound} if bound != 3.0 else {})
    options = config(tmp_path, translated(**keys)).algorithm.loss.options
    assert options[option] == bound


@pytest.mark.parametrize("mode", LOSSES)
def test_the_options_of_every_loss_are_those_that_it_takes(mode: str) -> None:
    chosen = LOSSES[mode]
    kind = import_module(f"hybridrl.algorithms.policy_losses.{chosen.name}")
    taken = {one.name for made in vars(kind).values() if is_dataclass(made) for one in fields(made)}
    assert {option for option, _ in chosen.options.values()} | chosen.always.keys() <= taken


def test_dro_without_its_weight_is_refused_as_in_verl() -> None:
    with pytest.raises(ConfigError, match="loss_mode=dro without .*dro_beta"):
        translated(**{f"{A}.policy_loss.loss_mode": "dro"})


def test_dro_keeps_its_weight(tmp_path: Path) -> None:
    keys = {f"{A}.policy_loss.loss_mode": "dro", f"{A}.policy_loss.dro_beta": 0.05}
    assert config(tmp_path, translated(**keys)).algorithm.loss.options == {"beta": 0.05, "over": "token"}


@pytest.mark.parametrize(
    ("keys", "ours"),
    [
        ({"custom_reward_function.path": "my.py"}, "reward.name"),
        ({"custom_reward_function.path": "my.py", "custom_reward_function.name": "f"}, "reward.name"),
        ({"reward.custom_reward_function.path": "my.py"}, "reward.name"),
    ],
)
def test_what_a_person_has_to_fill_in_refuses_to_start(
    tmp_path: Path, keys: dict[str, Any], ours: str
) -> None:
    found = translated(**keys)
    lines = {line.key: line for line in found.translated}
    assert "fill" in str(lines[ours].value) and lines[ours].note.startswith("check: fill in")
    path = tmp_path / "imported.yaml"
    path.write_text(found.as_yaml("test"))
    refused = [str(one) for one in check(load(path), RuleContext(num_gpus=8, spec=None))]
    try:
        load_reward(found.tree()["reward"]["name"], {}, where="reward.name")
    except HybridRLError as error:
        refused.append(f"reward.name: {error}")
    assert [one for one in refused if ours in one and "fill" in one]


def test_several_files_stay_several(tmp_path: Path) -> None:
    keys = {"data.train_files": ["a.parquet", "b.parquet"], "data.val_files": ["c.parquet"]}
    data = config(tmp_path, translated(**keys)).data
    assert (data.train.paths, data.heldout.path) == (("a.parquet", "b.parquet"), "c.parquet")


def test_the_dialect_of_easyr1_is_named() -> None:
    keys = {"worker.actor.model.model_path": "m", "data.rollout_batch_size": 8}
    with pytest.raises(ConfigError, match="EasyR1"):
        translated(**keys)


def test_a_launch_of_easyr1_is_found(tmp_path: Path) -> None:
    path = tmp_path / "run.sh"
    path.write_text("python3 -m verl.trainer.main config=c.yaml worker.actor.model.model_path=m\n")
    with pytest.raises(ConfigError, match="EasyR1"):
        translate(read(path, {}))
