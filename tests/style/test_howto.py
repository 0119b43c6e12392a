"""The pages on own rewards, data and parts: every example is run, every list is that of the code."""

import asyncio
import inspect
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import plugin_tables
import pytest
import torch
from documented import ROOT, blocks, configs, python_files
from model_values import tiny
from tiny_engine import Tiny

from hybridrl import cli
from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.objective import Objective
from hybridrl.config.load import load
from hybridrl.config.rollout import EngineParallel
from hybridrl.config.schema import AlgorithmConfig, Config, RewardConfig
from hybridrl.config.strict_yaml import parse
from hybridrl.data.prompts import PromptFormat
from hybridrl.data.source import open_rows
from hybridrl.errors import ConfigError, DataError, LayoutError, ModelError
from hybridrl.layout.hf import HFLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.trainers import TrainerLayout, layout_of
from hybridrl.models import families, spec
from hybridrl.models.table import Family, Row, Sharding
from hybridrl.models.tiny import random_model
from hybridrl.observe.samples import Sample, SampleFile
from hybridrl.rewards.gold import check_on_gold
from hybridrl.rewards.pool import Scorer
from hybridrl.rollout.base import Engine, EngineKind, EngineSetup, kind_of
from hybridrl.rollout.sglang import SGLang
from hybridrl.trainer.base import Backend, BackendKind, Model, Optimizer, Routing
from hybridrl.types import Prompt, Sampling

ROLES = ("reward", "task", "algorithm", "model", "engine", "trainer")
PAGES = {"own_reward": ROOT / "docs/own_reward.md"} | {
    role: ROOT / f"docs/extend_{role}.md" for role in ROLES
}
TEXT = {name: page.read_text("utf-8") for name, page in PAGES.items()}
EXAMPLES = [(name, path, code) for name, page in PAGES.items() for path, code in python_files(page).items()]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a reader who wrote down every file of the pages."""
    for _, path, code in EXAMPLES:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(code + "\n")
    found = blocks(TEXT["own_reward"])
    (tmp_path / "prompts.jsonl").write_text(next(b for b in found if b.startswith('{"question"')) + "\n")
    (tmp_path / "my.yaml").write_text(next(b for b in found if b.startswith("# my.yaml")) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for module in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        monkeypatch.delitem(sys.modules, module)
    return tmp_path


def section(page: str, key: str, place: int = 0) -> dict[str, Any]:
    """A section of a config that a page shows, by its key; `place` counts those of the page."""
    found = [parse(text, page).tree for text in configs(PAGES[page])]
    return [tree[key] for tree in found if key in tree][place]


def minimal(**sections: Any) -> dict[str, Any]:
    """A config with what must be given."""
    return {"model": "m", "data": {"train": "rows.jsonl"}, "reward": "none", "run": {"name": "r"}} | sections


def names(page: str, heading: str) -> list[str]:
    """Names in the first column of the table under a heading; a cell may have several."""
    table = TEXT[page].partition(f"| {heading} |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


def parts(role: type) -> set[str]:
    """What an implementation of a class writes: of an abstract class what is abstract, of a Protocol all."""
    abstract = getattr(role, "__abstractmethods__", frozenset())
    if not getattr(role, "_is_protocol", False):
        return set(abstract)
    return {name for name in {*vars(role), *inspect.get_annotations(role)} if not name.startswith("_")}


# All pages


@pytest.mark.parametrize(("page", "path", "code"), EXAMPLES, ids=lambda value: str(value)[:24])
def test_examples_are_short_and_whole(page: str, path: str, code: str) -> None:
    assert len(code.splitlines()) <= 60
    compile(code, path, "exec")
    assert sum(path == other for _, other, _ in EXAMPLES) == 1, "another page would overwrite it"


# Own reward


def test_the_first_example_is_checked_as_the_page_says(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "check", "my.yaml"]) == 0
    said = capsys.readouterr().out.splitlines()[-2:]
    shown = next(block for block in blocks(TEXT["own_reward"]) if block.startswith("data  "))
    assert " ".join(said).split() == shown.split()


def test_the_first_example_scores_in_the_real_pool(lab: Path) -> None:
    row = {"question": "12+5=", "label": "7"}
    with Scorer(load("my.yaml").config.reward) as scorer:
        right, other, text = scorer.score(["7", " 3\n", "12"], [row] * 3, ["a", "b", "c"])
    assert (right.reward, other.reward, text.reward) == (1.0, 0.1, 0.0)
    assert right.parts == {"right": 1.0, "digit": 1.0}


def test_samples_look_as_the_page_shows(tmp_path: Path) -> None:
    file = SampleFile(tmp_path / "samples.txt", resume_step=None)
    parts = {"right": 0.0, "digit": 0.0}
    file.write(2, [Sample("train/3", "47+3=", "9+50", 0.0, -0.35, "length", 4, "0", parts)])
    assert (tmp_path / "samples.txt").read_text().strip() in TEXT["own_reward"]


def test_an_answer_that_hangs_earns_the_hang_score(lab: Path) -> None:
    answers = ["a" * 40 + "c", "aab"]
    with Scorer(RewardConfig(name="patient_rewards:backtracking", timeout_s=0.2)) as scorer:
        hung, fine = scorer.score(answers, [{}, {}], ["a", "b"])
    assert (hung.reward, hung.parts, fine.reward) == (0.0, {"timeout": 1.0}, 1.0)


def test_a_reward_of_verl_is_called_by_one_of_ours(lab: Path) -> None:
    reward = RewardConfig.model_validate(section("own_reward", "reward", 1))
    rows = [{"data_source": "gsm8k", "reward_model": {"ground_truth": 7}}] * 2
    with Scorer(reward) as scorer:
        assert [s.reward for s in scorer.score(["it is 7", "8"], rows, ["a", "b"])] == [1.0, 0.0]


class Template:
    """A tokenizer that has a chat template."""

    def require_template(self, where: str) -> None: ...


def test_the_chat_rows_of_the_page_are_prompts() -> None:
    shown = next(block for block in blocks(TEXT["own_reward"]) if block.startswith('{"prompt": ['))
    config = Config.model_validate(minimal())
    chat = PromptFormat(config.data, Template(), "data")
    rows = [json.loads(line) for line in shown.splitlines()]
    for row in rows:
        chat.check(row["prompt"], "the page")
    with pytest.raises(DataError, match="ends with an answer of the assistant"):
        chat.check([*rows[0]["prompt"], {"role": "assistant", "content": "17"}], "the page")


@pytest.mark.parametrize("table", [plugin_tables.rewards, plugin_tables.tasks], ids=["rewards", "tasks"])
def test_the_tables_are_those_of_the_code(table: Callable[[], str]) -> None:
    assert table() in TEXT["own_reward"], f"docs/own_reward.md needs this table:\n\n{table()}"


# Reward, task, algorithm


def test_a_reward_class_prints_what_the_page_says(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path("try_closeness.py", run_name="__main__")
    assert capsys.readouterr().out.strip() in TEXT["reward"]


@pytest.mark.parametrize("place", [0, 1])
def test_a_reward_class_accepts_the_answers_of_the_data(lab: Path, place: int) -> None:
    reward = RewardConfig.model_validate(section("reward", "reward", place))
    rows = [{"answer": str(n)} for n in range(5)]
    with Scorer(reward) as scorer:
        assert check_on_gold(scorer, rows, where="rows").rejected_rows == ()


def test_a_reward_class_refuses_options_that_make_no_sense(lab: Path) -> None:
    reward = RewardConfig.model_validate({"name": "my_lab.closeness:Closeness", "scale": -1.0})
    with pytest.raises(ConfigError, match="scale = -1.0 is not positive"):
        Scorer(reward)


def test_a_task_makes_its_rows(lab: Path) -> None:
    data = Config.model_validate(minimal(data=section("task", "data"))).data
    sources = {"train": data.train, "heldout": data.heldout}
    found = {
        split: open_rows(source, split=split, seed=0, where="data")[1]
        for split, source in sources.items()
        if source
    }
    prompts = {split: set(rows.column("prompt")) for split, rows in found.items()}
    assert {split: len(rows) for split, rows in prompts.items()} == {"train": 400, "heldout": 100}
    assert not prompts["train"] & prompts["heldout"]
    assert all(row["prompt"] == f"{row['answer'][::-1]}=" for row in (found["train"][i] for i in range(9)))
    many = data.train.model_copy(update={"size": 10**6})
    with pytest.raises(ConfigError, match="the part train has"):
        open_rows(many, split="train", seed=0, where="data")


def test_an_algorithm_passes_its_checks(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("BestOfGroup", "BoundedWeight"):
        assert cli.main(["algo", "check", f"my_lab.best_of_group:{name}"]) == 0, capsys.readouterr().out


def test_an_algorithm_takes_the_options_of_the_page(lab: Path) -> None:
    algorithm = AlgorithmConfig.model_validate(section("algorithm", "algorithm"))
    reward_N, group_N = torch.tensor([3.0, 1.0, 2.0, 7.0, 7.0]), torch.tensor([0, 0, 0, 1, 1])
    advantage_N = load_estimator(algorithm)(reward_N=reward_N, group_N=group_N)
    assert torch.equal(advantage_N, torch.tensor([0.5, -0.5, 0.0, 0.0, 0.0]))
    assert Objective(algorithm).columns == {"old_logp"}


# Model


@pytest.fixture
def mistral(lab: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small model of the family, which is in the registry for this test."""
    (lab / "families").mkdir()
    (lab / "mistral.py").rename(lab / "families/mistral.py")
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(lab / "families")])
    monkeypatch.delitem(sys.modules, "hybridrl.models.families.mistral", raising=False)
    spec._families.cache_clear()
    yield lab
    spec._families.cache_clear()


def test_a_family_has_the_tensors_that_transformers_writes(mistral: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = MistralConfig(**sizes, **heads, sliding_window=None, architectures=["MistralForCausalLM"])
    config.save_pretrained(mistral)
    model = spec.read(mistral)
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in MistralForCausalLM(config).state_dict().items()}
    assert model.family == "mistral"
    assert {name: shard.shape for name, shard in HFLayout(model).shards(0).items()} == expected
    halves = MegatronLayout.of(model, on_gpu=False, tp=2)
    assert len(halves.shards(0)) == len(halves.shards(1)) > 0


def test_a_family_refuses_what_it_does_not_cover(mistral: Path) -> None:
    traits = runpy.run_path("families/mistral.py")["FAMILY"].traits
    assert traits({"sliding_window": None})["qkv_bias"] is False
    with pytest.raises(ModelError, match="sliding_window = 4096 is not supported"):
        traits({"sliding_window": 4096})


def test_a_row_of_its_own_is_a_row(lab: Path) -> None:
    rows = runpy.run_path("biased.py")["ROWS"]
    assert isinstance(rows[-1], Row) and len({row.name for row in rows}) == len(rows)


@pytest.mark.parametrize(("role", "heading"), [(Family, "field of `Family`"), (Row, "field of `Row`")])
def test_the_fields_of_a_table_are_all_explained(role: type, heading: str) -> None:
    assert {*names("model", heading)} == {*role.__dataclass_fields__}


def test_every_way_to_shard_a_parameter_is_named() -> None:
    assert not [cut for cut in Sharding.__args__ if f"`{cut}`" not in TEXT["model"]]


# Engine and trainer

LISTS = [
    ("engine", "part of `EngineKind`", EngineKind),
    ("engine", "method of `Engine`", Engine),
    ("trainer", "part of `BackendKind`", BackendKind),
    ("trainer", "part of `TrainerLayout`", TrainerLayout),
    ("trainer", "method of `Backend`", Backend),
    ("trainer", "method of `Model`", Model),
    ("trainer", "part of `Optimizer`", Optimizer),
    ("trainer", "method of `Routing`", Routing),
]


@pytest.mark.parametrize(("page", "heading", "role"), LISTS, ids=[role.__name__ for _, _, role in LISTS])
def test_the_methods_of_a_role_are_all_listed(page: str, heading: str, role: type) -> None:
    listed = names(page, heading)
    assert sorted(listed) == sorted(parts(role))


ENGINE, BACKEND = "my_lab.counting:CountingSGLang", "my_lab.one_stage:OneStage"


def test_an_engine_is_sglang_where_it_says_nothing(lab: Path) -> None:
    kind, model = kind_of(ENGINE), tiny("qwen3")
    sizes = kind.parallel(tp=2)
    assert kind.name == ENGINE and kind.layout(model, sizes) == SGLang().layout(model, sizes)


def test_an_engine_counts_what_another_answers(lab: Path) -> None:
    random_model(lab / "model", "qwen3", 0)
    folder, limits = str(lab / "model"), {"max_prompt_tokens": 16, "max_response_tokens": 16}
    setup = EngineSetup(model_folder=folder, log_path="", parallel=EngineParallel(), **limits)
    engine = runpy.run_path("my_lab/counting.py")["CountingEngine"](Tiny().open(setup), lab / "counts.json")
    prompts = [Prompt("train/0", (1, 2, 3), {}), Prompt("train/1", (4,), {})]
    sampling = Sampling(num_samples=2, max_response_tokens=3, seed=0)
    found, block = asyncio.run(engine.generate(prompts, sampling))
    tokens = sum(trajectory.response_tokens for group in found for trajectory in group)
    assert json.loads((lab / "counts.json").read_text()) == {"answers": 4, "tokens": tokens}
    assert len(block) == 4 and engine.session.version == 0


def test_a_backend_refuses_a_second_stage(lab: Path) -> None:
    layouts, model = layout_of(BACKEND), tiny("qwen3")
    assert layouts.of(model, on_gpu=False, tp=2).shards(1)
    with pytest.raises(LayoutError, match="this backend has one pipeline stage"):
        layouts.of(model, on_gpu=False, pp=2)


def test_kinds_are_known_without_torch(lab: Path) -> None:
    code = "import sys, my_lab.counting, my_lab.one_stage; assert not {'torch', 'numpy'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], cwd=lab, check=True)
