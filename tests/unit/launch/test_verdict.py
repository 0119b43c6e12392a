"""Every command gives the same verdict on a config: the same errors in the same words, or none."""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hybridrl import cli, registry
from hybridrl.algorithms.columns import Column
from hybridrl.algorithms.declared import by_default
from hybridrl.algorithms.mute import refuse_mute
from hybridrl.algorithms.packages import PACKAGES
from hybridrl.algorithms.rules import may_be_mute
from hybridrl.config.load import LoadedConfig, load, load_as
from hybridrl.config.presets import PRESETS
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.sft_rm import RMConfig, SFTConfig
from hybridrl.errors import HybridRLError
from hybridrl.hosts.machine import GIB, GPU, Machine
from hybridrl.launch import start, supervised_run
from hybridrl.launch.preflight import preflight
from hybridrl.launch.prepare import try_data
from hybridrl.launch.verdict import SCOPES, verdict
from hybridrl.models.tiny import qwen3_arithmetic
from hybridrl.plan import command as planning

Captured = pytest.CaptureFixture[str]
Asked = Callable[[LoadedConfig[Any]], object]

TEXT = """\
model: policy
data: {train: prompts.jsonl, chat_template: none}
reward: exact_match
algorithm: {preset: grpo}
rollout: {max_prompt_tokens: 16, max_response_tokens: 16}
run: {name: first}
"""
EXAMPLES = """\
model: policy
data: {train: examples.jsonl, chat_template: none}
run: {name: tuned}
"""
BARE = Machine(2, 64 * GIB, 64 * GIB, 8 * GIB, ())
PLAIN = planning.Request(search=False, gpus=None, mean_response=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a model, its teacher and data are."""
    made = tmp_path_factory.mktemp("verdict")
    qwen3_arithmetic(made / "policy", 0)
    shutil.copytree(made / "policy", made / "teacher")
    (made / "prompts.jsonl").write_text('{"prompt": "1+1=", "answer": "2", "demonstration": "2"}\n')
    (made / "examples.jsonl").write_text(
        '{"prompt": "1+1=", "response": "2", "chosen": "2", "rejected": "3"}\n'
    )
    (made / "my.yaml").write_text(TEXT)
    (made / "examples.yaml").write_text(EXAMPLES)
    return made


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls: BARE))


def told(*_: str) -> None:
    """Nobody listens."""


def request(**options: Any) -> start.Request:
    plain = start.Request(on="local", resume="never", dry_run=True, submit=False, wait=False)
    return replace(plain, **options)


COMMANDS: dict[str, Asked] = {
    "config check": lambda loaded: (
        preflight(loaded, SCOPES["launch"], BARE, told),
        try_data(loaded, told),
    ),
    "launch --dry-run": lambda loaded: start.launch(loaded, [], request(), told),
    "launch --on slurm": lambda loaded: preflight(loaded, SCOPES["launch --on slurm"], BARE, told),
    "plan": lambda loaded: planning.plan(loaded, BARE, PLAIN),
    "init": lambda loaded: verdict(loaded, SCOPES["init"], BARE).known(),
}


def errors_of(asked: Asked, loaded: LoadedConfig[Any]) -> tuple[tuple[str, ...], int]:
    """What a command is refused for, and its exit code."""
    try:
        asked(loaded)
    except HybridRLError as error:
        return tuple(map(str, getattr(error, "errors", (error,)))), error.exit_code
    return (), 0


def same_everywhere(*overrides: str) -> tuple[str, ...]:
    loaded = load("my.yaml", overrides)
    found = {name: errors_of(asked, loaded) for name, asked in COMMANDS.items()}
    assert len(set(found.values())) == 1, found
    errors, code = found["plan"]
    assert code == (2 if errors else 0)
    return errors


def overrides_of(algorithm: AlgorithmConfig) -> list[str]:
    names = ((algorithm.preset or "").rpartition("/")[2], algorithm.estimator.name)
    teacher, hint = "algorithm.teacher=teacher", "algorithm.hint.max_tokens=128"
    taught = {"distillation": teacher, "gkd": teacher, "opsd": hint, "opsd_jsd": hint}
    given = ["algorithm.samples_per_prompt=4", *(taught[name] for name in names if name in taught)]
    parts = "parts: {a: {name: exact_match, weight: 1.0}, b: {name: regex, weight: 1.0, pattern: x}}"
    return [*given, *([f"reward={{name: weighted_sum, {parts}}}"] if "gdpo" in names else [])]


NOT_USABLE = {
    "gigpo": ["anchor", "turn", "turn_reward"],
    "step_reinforce": ["anchor", "turn", "turn_reward"],
    "rae": ["agent"],
    "spiral": ["agent"],
    "hierarchical_grpo": ["agent", "episode"],
}
"""Estimators and presets that need an environment; rows of frameworks have no others."""


@pytest.mark.parametrize("preset", sorted(name for name in PRESETS if "/" not in name and name != "echo"))
def test_every_preset(preset: str) -> None:
    overrides = overrides_of(AlgorithmConfig.model_validate({"preset": preset}))
    assert_only_columns(same_everywhere(f"algorithm.preset={preset}", *overrides), NOT_USABLE.get(preset, []))


@pytest.mark.parametrize("estimator", registry.names(PACKAGES["estimator"]))
def test_every_estimator(estimator: str) -> None:
    algorithm = AlgorithmConfig.model_validate({"estimator": estimator})
    errors = same_everywhere(f"algorithm.estimator={estimator}", *overrides_of(algorithm))
    assert_only_columns(errors, NOT_USABLE.get(estimator, []))


def assert_only_columns(errors: tuple[str, ...], columns: list[Column]) -> None:
    missing = f"the estimator needs {', '.join(columns)}, which only a run with an environment has"
    assert [error.partition("  (")[0] for error in errors] == ([missing] if columns else [])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm.loss={name: ppo_clip, clip_lo: 0.1}", "ppo_clip has no option 'clip_lo'"),
        ("algorithm.loss={name: ppo_clip, clip_low: wide}", "ppo_clip: clip_low = wide is not a number"),
        ("algorithm.loss={name: ppo_clip, clip_low: 2.0}", "clip_low = 2.0 is not in [0, 1]"),
        ("algorithm.loss=dro", "dro needs the option beta"),
        ("algorithm.estimator={name: gae, discount: 2.0}", "gae: discount = 2.0 is not in [0, 1]"),
        ("algorithm.estimator=group", "estimators has no 'group'"),
        ("algorithm.estimator=nowhere:Name", "cannot import 'nowhere'"),
        ("algorithm.correction=[{name: token_is, cup: 2.0}]", "did you mean cap?"),
        ("algorithm={loss: copg, aggregate: seq_mean_token_mean}", "has no meaning with aggregate"),
        ("algorithm={estimator: rae, kl: {coefficient: 0.1, in: reward}}", "keeps a state and knows no KL"),
        ("algorithm={preset: grpo, samples_per_prompt: 1}", "samples_per_prompt = 1"),
        ("algorithm.preset=distillation", "algorithm.teacher is not set"),
        ("actor={backend: fsdp, recompute: selective}", "no recomputation of attention alone"),
        ("actor={backend: fsdp, parallel: {pp: 2}}", "pp = 2: the FSDP backend has tp, cp, dp and shard"),
        ("actor.parallel={dp: 4, shard: 2}", "shard = 2: Megatron does not share weights over ranks"),
        ("actor={backend: fsdp, parallel: {tp: 2, sp: true}}", "sp = true: the FSDP backend has no sequence"),
        ("algorithm.teacher=teacher", "algorithm.teacher = teacher is not used"),
        ("algorithm={estimator: gae, drop_truncated: true}", "drop_truncated leaves answers out"),
        ("algorithm.shaping=[{name: affine, scale: 0.0}]", "every reward is the same"),
        ("critic.parallel={tp: 1}", "critic.parallel is set, but estimator grpo"),
        ("reward={name: exact_match, strictly: true}", "reward exact_match has no option 'strictly'"),
        ("reward=exact_mach", "rules has no 'exact_mach'"),
        ("rollout.max_response_tokens=5000", "is more than the 1024 positions of policy"),
        ("actor.microbatch_tokens=8", "is more than actor.microbatch_tokens = 8"),
        ("actor.parallel.tp=3", "actor.parallel.tp = 3 does not divide the 4 attention heads"),
        ("rollout.parallel.tp=3", "rollout.parallel.tp = 3 does not divide"),
        ("actor.parallel.ep=2", "is for experts, and policy has none"),
        ("actor.moe.router_replay=rollout", "has no experts"),
        ("batch={prompts_per_step: 8, minibatch_prompts: 3}", "is not a multiple of"),
        ("reward_model=policy", "the model policy has no score.weight"),
        ("reward_model={path: policy, parallel: {tp: 3}}", "the model policy has no score.weight"),
        ("model={path: gone, make: 'hybridrl.models.tiny:nothing'}", "has no 'nothing'"),
        ("model={path: made, make: 'hybridrl.models.tiny:qwen3_arithmetic'}", ""),
        ("model={path: policy/.., make: null}", "config.json"),
        ("data.train=prompts.txt", "is no prompt file"),
        ("run.name=a/b", "is not a folder name"),
    ],
)
def test_every_kind_of_mistake(override: str, message: str) -> None:
    errors = same_everywhere(override)
    assert bool(errors) == bool(message)
    assert message in "\n".join(errors)


def test_with_gpus_that_are_not_here_only_what_runs_here_says_more() -> None:
    loaded = load("my.yaml", ["actor.fp8=mxfp8", "cluster={gpus_per_node: 1, gpu: h100}"])
    found = {name: errors_of(asked, loaded)[0] for name, asked in COMMANDS.items()}
    assert "actor.fp8 = mxfp8 needs b200, cluster.gpu = h100" in "\n".join(found["plan"])
    assert found["plan"] == found["init"] == found["launch --on slurm"]
    assert found["config check"] == found["launch --dry-run"]
    assert set(found["config check"]) > set(found["plan"])
    assert all("GPU" in error for error in {*found["config check"]} - {*found["plan"]})


def test_a_model_that_is_not_here_is_refused_where_it_is_needed() -> None:
    loaded = load("my.yaml", ["model=gone"])
    refused = {errors_of(asked, loaded)[0] for name, asked in COMMANDS.items() if name != "init"}
    assert len(refused) == 1 and "no model folder at model.path = gone" in min(refused)[0]
    found = verdict(load("my.yaml", ["model=gone"]), SCOPES["init"], BARE)
    assert not found.errors and "no model folder at model.path = gone" in str(found.absent[0])


def test_data_that_are_not_here_are_refused_by_what_reads_them() -> None:
    loaded = load("my.yaml", ["data.train=gone.jsonl"])
    refused = [name for name, asked in COMMANDS.items() if errors_of(asked, loaded)[0]]
    assert refused == ["config check", "launch --dry-run", "launch --on slurm"]


def errors_in(scope: str, *overrides: str, machine: Machine = BARE) -> list[str]:
    return [error.what for error in verdict(load("my.yaml", overrides), SCOPES[scope], machine).errors]


MACHINES = {
    "cluster.nodes=2": dict.fromkeys(("launch", "eval"), ["this machine only"]),
    "cluster.gpus_per_node=1": dict.fromkeys(("launch", "launch --on ray", "eval"), ["no GPU"]),
    "cluster={nodes: 3, gpus_per_node: 0}": dict.fromkeys(("launch", "eval"), ["this machine only"]),
}
"""Overrides -> what the scopes say of this machine; the others say nothing."""


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("override", MACHINES)
def test_what_a_scope_leaves_out_is_what_it_cannot_know(scope: str, override: str) -> None:
    """The trainer has as many ranks as there are machines, so that these alone are in question."""
    wanted = MACHINES[override].get(scope, [])
    found = errors_in(scope, override, "actor.parallel.dp=3" if "3" in override else "run.seed=1")
    found = [what for what in found if "every node needs one" not in what]
    assert len(found) == len(wanted) and all(part in what for part, what in zip(wanted, found, strict=True))


def test_a_search_leaves_out_how_roles_fill_the_gpus() -> None:
    cluster = "cluster={nodes: 2, gpus_per_node: 8, gpu: h100}"
    idle = {scope: errors_in(scope, cluster, "actor.parallel.dp=1") for scope in SCOPES}
    assert not idle.pop("plan --search") and "the trainer" not in str(idle.pop("eval"))
    assert all(any("the trainer has 1 rank," in what for what in found) for found in idle.values())


def test_gpus_of_this_machine_count_where_the_config_leaves_them_open() -> None:
    card = GPU(0, "GPU-0", "NVIDIA A100-SXM4-80GB", 80 * GIB, 0)
    with_gpus = replace(BARE, gpus=(card,) * 4)
    for keys, message in (
        (("actor.lora={rank: 8}",), "actor.lora with 4 GPUs a node"),
        (("actor.fp8=blockwise",), "this machine has a100"),
        (("actor.parallel.dp=2",), "the cluster 4 GPUs"),
    ):
        here, planned = (errors_in(scope, *keys, machine=with_gpus) for scope in ("launch", "plan"))
        assert here == planned and any(message in what for what in here)


@pytest.mark.parametrize(
    "override",
    ["actor.parallel.dp=8", "rollout.num_engines=8", "rollout.parallel.tp=8", "model=some/unknown"],
)
def test_one_mistake_is_one_error(override: str, cached: None) -> None:
    card = GPU(0, "GPU-0", "NVIDIA A100-SXM4-80GB", 80 * GIB, 0)
    found = errors_in("launch", override, machine=replace(BARE, gpus=(card,) * 4))
    assert len([what for what in found if "attention heads" not in what]) == 1, found


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config.json in the hub's cache that no table describes."""
    folder = tmp_path / "models--some--unknown"
    (folder / "snapshots" / "1").mkdir(parents=True)
    (folder / "snapshots" / "1" / "config.json").write_text('{"architectures": ["OtherForCausalLM"]}')
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


def test_a_mistake_inside_an_option_is_where_the_option_is() -> None:
    parts = "reward={name: weighted_sum, parts: {a: {name: regex, weight: 1.0}}}"
    assert same_everywhere(parts) == (
        "reward regex needs the option pattern  (command line): add pattern: ...",
    )


def test_columns_of_turns_need_an_environment() -> None:
    shaping = "algorithm.shaping=[{name: relative_length, turns: 0.1}]"
    (error,) = same_everywhere(shaping)
    assert error.startswith("the shaping needs turns, which only a run with an environment has")
    several = ("environment=guess", "rollout.max_context_tokens=64")
    assert same_everywhere("algorithm.preset=gigpo", *several) == ()
    assert same_everywhere(shaping, *several) == ()


SUPERVISED: dict[str, tuple[type, Any]] = {
    "sft": (SFTConfig, supervised_run.SFT),
    "rm": (RMConfig, supervised_run.RM),
}


@pytest.mark.parametrize("kind", SUPERVISED)
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.seed=1", ""),
        ("actor.parallel.tp=3", "does not divide the 4 attention heads"),
        ("actor.lora={rank: 8}", "actor.lora has no effect on training with examples"),
        ("cluster.nodes=2", "what starts here has this machine only"),
        ("model=gone", "no model folder at model.path = gone"),
        ("data.train=examples.txt", "is no prompt file"),
        ("data.chat_template=model", "has no chat template"),
        ("actor.moe.router_replay=rollout", "has no experts"),
        ("actor.fp8=tensorwise", "actor.fp8 = tensorwise needs GPUs, this machine has none"),
    ],
)
def test_training_on_examples(kind: str, override: str, message: str) -> None:
    root, trained = SUPERVISED[kind]
    path, overrides = Path("examples.yaml"), [override]
    asked: dict[str, Callable[[], object]] = {
        "plan": lambda: planning.plan_examples(load_as(root, path, overrides), BARE, PLAIN),
        "check": lambda: supervised_run.check(trained, path, overrides, told),
        "dry run": lambda: supervised_run.launch(trained, path, overrides, told, resume=False, dry_run=True),
    }
    loaded = load_as(root, path)
    found = {name: errors_of(lambda _, one=one: one(), loaded) for name, one in asked.items()}
    assert len(set(found.values())) == 1, found
    errors, code = found["plan"]
    assert message in "\n".join(errors) and code == (2 if message else 0)


@pytest.mark.parametrize("kind", SUPERVISED)
def test_training_on_examples_asks_for_memory(kind: str) -> None:
    loaded = load_as(SUPERVISED[kind][0], Path("examples.yaml"))
    small = replace(BARE, available_bytes=1000)
    assert [len(verdict(loaded, SCOPES["launch"], machine).errors) for machine in (BARE, small)] == [0, 1]


def known_to_teach() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in registry.names(PACKAGES["estimator"]):
        yield f"estimator {name}", {"estimator": name}
    for name in registry.names(PACKAGES["policy_loss"]):
        yield f"loss {name}", {"loss": name}
    for name, preset in PRESETS.items():
        yield f"preset {name}", dict(preset.algorithm)


@pytest.mark.parametrize(("name", "keys"), list(known_to_teach()), ids=[name for name, _ in known_to_teach()])
def test_what_is_not_tried_is_known_to_teach(name: str, keys: dict[str, Any]) -> None:
    """A plan leaves out the trial, and torch with it, for these alone."""
    if keys.get("loss") == "dro":
        keys = {"loss": {"name": "dro", "beta": 1.0}}  # it has no default
    for samples in (2, 8):
        algorithm = AlgorithmConfig.model_validate({**keys, "samples_per_prompt": samples})
        allowed = getattr(by_default("policy_loss", algorithm.loss.name), "aggregates", None)
        aggregate = min(allowed) if allowed and "aggregate" not in keys else algorithm.aggregate
        refuse_mute(algorithm.model_copy(update={"aggregate": aggregate}))


def test_other_options_are_tried() -> None:
    def tried(**keys: Any) -> bool:
        return may_be_mute(AlgorithmConfig.model_validate(keys))

    assert not tried() and not tried(preset="gspo") and not tried(loss={"name": "ppo_clip", "clip_low": 0.2})
    assert tried(loss={"name": "ppo_clip", "clip_low": 0.3}) and tried(estimator="mine:Name")
    assert tried(shaping=["clip"]) and tried(correction=["bypass"])


LINES = (["config", "check"], ["plan"], ["launch"], ["launch", "--dry-run"])


def said(capsys: Captured, *arguments: str) -> tuple[int, str]:
    code = cli.main(list(arguments))
    return code, capsys.readouterr().err


def test_the_command_line_says_the_same(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    wrong = ["algorithm.preset=gigpo", "actor.parallel.tp=3"]
    found = {said(capsys, *line, "my.yaml", *wrong) for line in LINES}
    ((code, text),) = found
    assert code == 2 and text.count("error: ") == 2 and "anchor, turn, turn_reward" in text


def test_a_first_config_is_refused_before_it_is_written(capsys: Captured) -> None:
    answers = ["--model", "policy", "--data", "prompts.jsonl", "--reward", "exact_match"]
    code, text = said(capsys, "init", "gigpo", *answers)
    _, planned = said(capsys, "plan", "my.yaml", "algorithm.preset=gigpo")
    assert (code, text) == (2, planned) and not Path("gigpo.yaml").exists()
    assert said(capsys, "init", "grpo", *answers, "-o", "first.yaml") == (0, "")
    assert said(capsys, "config", "check", "first.yaml") == (0, "")


@pytest.mark.parametrize("kind", SUPERVISED)
def test_a_check_is_for_the_command_that_is_named(capsys: Captured, kind: str) -> None:
    assert said(capsys, "config", "check", "examples.yaml", "--for", kind) == (0, "")
    line = "examples.yaml", "actor.parallel.tp=3"
    checked, planned = (said(capsys, *name, *line, "--for", kind) for name in (["config", "check"], ["plan"]))
    assert checked == planned == said(capsys, kind, *line, "--dry-run") and checked[0] == 2
