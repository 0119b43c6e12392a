"""From YAML and overrides to a config: values, origins, and every mistake with its place."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from hybridrl.config.load import LoadedConfig, load, load_as, values
from hybridrl.config.rollout import EngineParallel
from hybridrl.config.sft_rm import RMConfig, SFTConfig
from hybridrl.errors import ConfigError, ConfigErrors
from hybridrl.rollout.sglang.sizes import SGLangParallel

BASE = """\
model: models/tiny
data:
  train: train.jsonl
reward: exact
run: {name: first}
"""


def write(folder: Path, text: str = BASE) -> Path:
    path = folder / "my.yaml"
    path.write_text(text)
    return path


def loaded(folder: Path, text: str = BASE, *overrides: str) -> LoadedConfig:
    return load(write(folder, text), overrides)


def mistakes(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigErrors) as error:
        loaded(folder, text, *overrides)
    return [str(one).replace(f"{folder}/", "") for one in error.value.errors]


def test_short_forms_are_whole_sections(tmp_path: Path) -> None:
    config = loaded(tmp_path).config
    assert (config.model.path, config.data.train.path, config.reward.name) == (
        "models/tiny",
        "train.jsonl",
        "exact",
    )


def test_the_folder_of_a_made_model_may_name_the_seed(tmp_path: Path) -> None:
    text = BASE.replace("models/tiny", "'models/tiny-{seed}'")
    assert loaded(tmp_path, text).config.model.path == "models/tiny-0"
    assert loaded(tmp_path, text, "run.seed=3").config.model.path == "models/tiny-3"
    assert loaded(tmp_path, text, "run.seed=3").origins["model.path"] == f"{tmp_path / 'my.yaml'}:1"


@pytest.mark.parametrize("kind", [SFTConfig, RMConfig])
def test_the_model_of_training_on_examples_may_name_the_seed(tmp_path: Path, kind: type) -> None:
    path = tmp_path / "examples.yaml"
    path.write_text("model: models/tiny-{seed}\ndata: {train: a.jsonl}\nrun: {name: a}\n")
    assert load_as(kind, path, ["run.seed=3"]).config.model.path == "models/tiny-3"


def test_a_value_knows_where_it_comes_from(tmp_path: Path) -> None:
    text = BASE + "algorithm: {preset: dapo, samples_per_prompt: 4}\n"
    found = loaded(tmp_path, text, "run.seed=3").origins
    file = tmp_path / "my.yaml"
    assert found["model.path"] == f"{file}:1"
    assert found["data.train.path"] == f"{file}:3"
    assert found["algorithm.samples_per_prompt"] == f"{file}:6"
    assert found["algorithm.loss.clip_high"] == "preset dapo"
    assert found["run.seed"] == "command line"
    assert found["batch.epochs"] == "default"


def test_every_value_has_an_origin(tmp_path: Path) -> None:
    found = loaded(tmp_path)
    assert found.origins.keys() == {name for name, _ in values(found.config)}


def test_where_names_the_first_key_that_somebody_wrote(tmp_path: Path) -> None:
    found = loaded(tmp_path)
    file = tmp_path / "my.yaml"
    assert found.where("run.name") == f"{file}:5"
    assert found.where("run.steps", "run.name") == f"{file}:5"
    assert found.where("data.train") == f"{file}:3"
    assert found.where("run.steps") == f"default of run.steps, {file} does not set it"


def test_an_error_about_a_key_gets_its_place(tmp_path: Path) -> None:
    found = loaded(tmp_path, BASE + "algorithm:\n  estimator:\n    name: grpo\n    eps: 1.0e-4\n")
    located = found.locate(ConfigError("wrong", where="algorithm.estimator.eps", fix="change it"))
    assert str(located) == f"wrong  ({tmp_path}/my.yaml:9): change it"
    remote_columns = ConfigError("wrong", where="/some/path")
    assert found.locate(remote_columns) is remote_columns


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("run.steps=20", "run.steps", 20),
        ("actor.optimizer.lr=1e-5", "actor.optimizer.lr", 1e-5),
        ("actor.optimizer.betas=[0.8, 0.9]", "actor.optimizer.betas", (0.8, 0.9)),
        ("run.name=a=b", "run.name", "a=b"),
        ("batch.minibatch_prompts=null", "batch.minibatch_prompts", None),
        ("reward.pattern=x+", "reward.pattern", "x+"),
        ("data.heldout=other.jsonl", "data.heldout.path", "other.jsonl"),
        ("data.train={task: sums, size: 9}", "data.train.size", 9),
        ("algorithm.kl.in=reward", "algorithm.kl.in", "reward"),
    ],
)
def test_an_override_sets_a_key(tmp_path: Path, override: str, key: str, value: object) -> None:
    found = loaded(tmp_path, BASE, override)
    assert dict(values(found.config))[key] == value
    assert found.origins[key] == "command line"


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert loaded(tmp_path, BASE, "run.steps=1", "run.steps=2").config.run.steps == 2


def test_a_replaced_section_forgets_what_the_file_said(tmp_path: Path) -> None:
    text = BASE + "algorithm:\n  estimator: {name: grpo, eps: 1.0e-4}\n"
    found = loaded(tmp_path, text, "algorithm.estimator=rloo")
    assert found.config.algorithm.estimator.options == {}
    assert "algorithm.estimator.eps" not in found.origins


@pytest.mark.parametrize("override", ["run.steps", "=3", "a..b=3", ".=1"])
def test_what_is_no_override_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="is not an override"):
        loaded(tmp_path, BASE, override)


def test_an_override_cannot_go_through_a_value(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run.name = first has no keys"):
        loaded(tmp_path, BASE, "run.name.first=1")


def test_an_empty_section_is_all_defaults(tmp_path: Path) -> None:
    assert loaded(tmp_path, BASE + "actor:\n").config.actor.microbatch_tokens == 16384


def test_presets_fill_what_was_not_written(tmp_path: Path) -> None:
    text = BASE + "algorithm: {preset: dapo, loss: {clip_low: 0.1}, aggregate: token_sum}\n"
    algorithm = loaded(tmp_path, text).config.algorithm
    assert algorithm.loss.name == "ppo_clip"
    assert algorithm.loss.options == {"clip_low": 0.1, "clip_high": 0.28}
    assert algorithm.aggregate == "token_sum"


def test_another_plugin_takes_no_options_of_the_presets(tmp_path: Path) -> None:
    text = BASE + "algorithm: {preset: dapo, loss: mine:Loss}\n"
    assert loaded(tmp_path, text).config.algorithm.loss.options == {}


def test_unknown_keys_name_the_nearest_and_the_line(tmp_path: Path) -> None:
    text = BASE + "actor:\n  parallel: {tensor: 8}\n  lr: 1e-6\nrolout: {n: 4}\n"
    assert mistakes(tmp_path, text, "run.step=5") == [
        "unknown key actor.parallel.tensor  (my.yaml:7): did you mean actor.parallel.tp?",
        "unknown key actor.lr  (my.yaml:8): did you mean actor.optimizer.lr?",
        "unknown key rolout.n  (my.yaml:9): did you mean algorithm.samples_per_prompt?",
        "unknown key run.step  (command line): did you mean run.steps?",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("batch: {epochs: many}", "batch.epochs = many is not an integer above 0  (my.yaml:6)"),
        ("batch: {epochs: true}", "batch.epochs = true is not an integer above 0  (my.yaml:6)"),
        ("batch: {epochs: 2.5}", "batch.epochs = 2.5 is not an integer above 0  (my.yaml:6)"),
        ("batch: {epochs: '2'}", "batch.epochs = '2' is not an integer above 0  (my.yaml:6)"),
        ("batch: {epochs: 0}", "batch.epochs = 0 is not an integer above 0  (my.yaml:6)"),
        ("batch: {epochs: null}", "batch.epochs = null is not an integer above 0  (my.yaml:6)"),
        (
            "actor: {backend: megatorn}",
            "actor.backend: there is no trainer backend 'megatorn', use one of fsdp, megatron, or module:Kind"
            "  (my.yaml:6)",
        ),
        ("batch: 3", "batch = 3 is not a section  (my.yaml:6): its keys are prompts_per_step"),
        (
            "evaluate: {temperature: -1}",
            "evaluate.temperature = -1 is not a number of at least 0  (my.yaml:6)",
        ),
        ("rollout: {memory_fraction: 1.5}", "is not a number above 0 and at most 1  (my.yaml:6)"),
        (
            "actor: {recompute: ful}",
            "actor.recompute = ful is not one of none, selective, full  (my.yaml:6): did you mean full?",
        ),
        ("actor: {optimizer: {lr: .inf}}", "actor.optimizer.lr = .inf is not a number above 0  (my.yaml:6)"),
        ("actor: {optimizer: {betas: [0.9]}}", "betas = [0.9] is not a list of 2 numbers  (my.yaml:6)"),
        ("actor: {optimizer: {betas: [0.9, x]}}", "betas = [0.9, x] is not a list of 2 numbers  (my.yaml:6)"),
        ("algorithm: {preset: dap}", "there is no preset 'dap'  (my.yaml:6): use dapo"),
        (
            "algorithm: {loss: {clip_low: 1}}",
            "missing key algorithm.loss.name  (my.yaml): add it: File name in",
        ),
        (
            '"actor.recompute": full',
            "the key 'actor.recompute' has a dot in it  (my.yaml:6): write one level for each dot",
        ),
        ("algorithm: {loss: {name: x, 'a-b': 1}}", "algorithm.loss has an option 'a-b'  (my.yaml:6)"),
    ],
)
def test_a_wrong_value_is_shown_with_what_is_expected(tmp_path: Path, line: str, message: str) -> None:
    (only,) = mistakes(tmp_path, BASE + line + "\n")
    assert message in only


def test_a_missing_key_says_what_it_is_for(tmp_path: Path) -> None:
    (only,) = mistakes(tmp_path, BASE.replace("run: {name: first}", "run: {steps: 3}"))
    assert only == "missing key run.name  (my.yaml): add it: Folder of the run inside `folder`."


def test_a_source_is_a_file_or_a_task(tmp_path: Path) -> None:
    both = BASE.replace("train: train.jsonl", "train: {path: a.jsonl, task: sums}")
    options = BASE.replace("train: train.jsonl", "train: {path: a.jsonl, size: 3}")
    assert mistakes(tmp_path, both) == [
        "data.train: give a path, a data set of the hub, or a task: one of the three  (my.yaml:3)"
    ]
    assert "a file has no options" in mistakes(tmp_path, options)[0]


def test_all_mistakes_are_shown_at_once_down_the_file(tmp_path: Path) -> None:
    text = "batch: {epochs: x}\n" + BASE + "actor: {recompute: y, z: 1}\n"
    lines = [one.partition("my.yaml:")[2].partition(")")[0] for one in mistakes(tmp_path, text)]
    assert lines == ["1", "7", "7"]


def test_errors_survive_a_process_boundary(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors) as error:
        loaded(tmp_path, BASE + "a: 1\nb: 2\n")
    back = pickle.loads(pickle.dumps(error.value))
    assert [str(one) for one in back.errors] == [str(one) for one in error.value.errors]
    assert str(back) == str(error.value)


def test_a_missing_file_names_what_is_there(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ConfigError, match=r"no config at .*/mu.yaml: there is .*/my.yaml"):
        load(tmp_path / "mu.yaml")


def test_a_folder_and_bytes_are_no_config(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(tmp_path / "b.yaml")


def test_the_sizes_of_an_engine_are_those_of_its_kind(tmp_path: Path) -> None:
    found = loaded(tmp_path, BASE, "rollout.parallel={tp: 4, ep: 2}")
    assert found.config.rollout.parallel == SGLangParallel(tp=4, ep=2)
    assert dict(values(found.config))["rollout.parallel.dp_attention"] == 1
    assert found.origins["rollout.parallel.ep"] == "command line"
    other = loaded(tmp_path, BASE, "rollout.engine=tiny_engine:Tiny", "rollout.parallel.tp=2").config
    assert other.rollout.parallel == EngineParallel(tp=2)
    assert other.model_dump()["rollout"]["parallel"] == {"tp": 2}
    assert found.config.model_dump()["rollout"]["parallel"] == {"tp": 4, "ep": 2, "dp_attention": 1}


def test_a_kind_of_engine_that_is_not_there_and_sizes_that_it_has_not_are_mistakes(tmp_path: Path) -> None:
    text = BASE + "rollout:\n  engine: slang\n  parallel: {tp: 2, ep: 2}\n"
    assert mistakes(tmp_path, text) == [
        "rollout.engine: rollout has no 'slang'; use one of sglang, or module:Name  (my.yaml:7)"
    ]
    text = BASE + "rollout:\n  engine: tiny_engine:Tiny\n  parallel: {tp: 2, ep: 2}\n"
    (unknown,) = mistakes(tmp_path, text)
    assert unknown.startswith("unknown key rollout.parallel.ep  (my.yaml:8)")
    assert "did you mean" not in unknown
    (wrong,) = mistakes(tmp_path, BASE, "rollout.parallel={ep: 0}")
    assert wrong.startswith("rollout.parallel.ep = 0 is not an integer above 0  (command line)")
    (wrong,) = mistakes(tmp_path, BASE, "rollout.parallel=[2]")
    assert "is not a section" in wrong and "tp, ep, dp_attention" in wrong


def test_a_config_is_loaded_without_numpy_torch_and_the_engine(tmp_path: Path) -> None:
    program = (
        "import sys; from hybridrl.config.load import load; load(sys.argv[1], ['rollout.engine=sglang']);"
        "print({'numpy', 'torch', 'sglang', 'ray'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", program, str(write(tmp_path))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "set()\n"
