"""What is refused when data and reward are tried, before any worker starts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from reward_model_folders import write_reward_model

from hybridrl.config.load import load
from hybridrl.errors import ConfigError, DataError, ModelError
from hybridrl.launch.prepare import try_data
from hybridrl.models import tiny

TEXT = """\
model: policy
data: {train: rows.jsonl, chat_template: none}
reward: exact_match
rollout: {max_prompt_tokens: 16, max_response_tokens: 16}
algorithm: {preset: gdpo}
run: {name: first}
"""
A, B = "{name: exact_match, weight: 1}", "{name: regex, weight: 1, pattern: '.'}"
TWO = f"{{name: weighted_sum, parts: {{a: {A}, b: {B}}}}}"


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(TEXT)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    tiny.qwen3_arithmetic(tmp_path / "policy", 0)
    write_reward_model(tmp_path / "judge")
    return lambda *overrides: try_data(load("my.yaml", overrides), lambda heading, text: None)


ONE = [
    "reward=exact_match",
    "reward={name: regex, pattern: '2'}",
    f"reward={{name: weighted_sum, parts: {{a: {A}}}}}",
    "reward=none reward_model=judge",
]


@pytest.mark.parametrize("reward", ONE)
def test_gdpo_is_refused_where_one_answer_shows_nothing_to_weigh(
    tried: Callable[..., None], reward: str
) -> None:
    keys = reward.split(" ") if "none" in reward else [reward]
    with pytest.raises(
        ConfigError, match="gdpo normalises parts of the reward against each other"
    ) as refused:
        tried(*keys)
    assert refused.value.where in ("preset gdpo", "my.yaml:5")


def test_gdpo_takes_two_parts_and_a_rule_beside_a_model(tried: Callable[..., None]) -> None:
    tried(f"reward={TWO}")
    tried("reward_model=judge")


def test_as_many_weights_as_parts(tried: Callable[..., None]) -> None:
    three = "algorithm={estimator: {name: gdpo, weights: [1.0, 1.0, 1.0]}}"
    with pytest.raises(ConfigError, match="3 weights for 2 parts of the reward; its parts are a, b"):
        tried(f"reward={TWO}", three)


MAKE = "model={path: made, make: 'hybridrl.models.tiny:qwen3_arithmetic'}"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("reward=nowhere:right", "cannot import 'nowhere'"),
        ("data.prompt_field=question", "has no column 'question'"),
    ],
)
def test_data_and_reward_are_tried_before_the_model_is_made(
    tried: Callable[..., None], override: str, said: str
) -> None:
    plain = "algorithm={preset: grpo}"
    tried(MAKE, plain)
    with pytest.raises((ConfigError, DataError), match=said):
        tried(MAKE, plain, override)
    assert not Path("made").exists()


def test_what_is_odd_about_a_prompt_is_said_before_the_start(tried: Callable[..., None]) -> None:
    Path("rows.jsonl").write_text('{"prompt": "a+1=", "answer": "2"}\n')
    said = list[tuple[str, str]]()
    one = ["algorithm={preset: grpo}", "batch.prompts_per_step=1"]
    try_data(load("my.yaml", one), lambda *line: said.append(line))
    [warning] = [text for heading, text in said if heading == "warning"]
    assert warning.startswith("row 1 of rows.jsonl: 1 of 4 tokens of the prompt are <unk>")


@pytest.mark.parametrize("folder", ["policy", "judge"])
def test_weights_that_are_not_whole_are_refused(tried: Callable[..., None], folder: str) -> None:
    file = Path(folder, "model.safetensors")
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(
        ModelError, match=f"{folder}/model.safetensors has .* bytes, .* by its header  .(my.yaml|command)"
    ):
        tried("algorithm={preset: grpo}", "reward=none", "reward_model=judge")


@pytest.mark.parametrize("made", [(), (MAKE,)], ids=["model here", "model not made"])
@pytest.mark.parametrize("file", ["rows.jsonl", "heldout.jsonl"])
@pytest.mark.parametrize("value", ["null", "NaN", '""'])
def test_a_row_without_a_reference_is_found_in_both_files_wherever_it_stands(
    tried: Callable[..., None], file: str, value: str, made: tuple[str, ...]
) -> None:
    good = '{"prompt": "1+1=", "answer": "2"}\n' * 700
    for name in ("rows.jsonl", "heldout.jsonl"):
        Path(name).write_text(good)
    overrides = (*made, "algorithm={preset: grpo}", "data.heldout=heldout.jsonl")
    tried(*overrides)
    Path(file).write_text(good + f'{{"prompt": "1+1=", "answer": {value}}}\n' + good)
    with pytest.raises(
        DataError, match=f"1 of 1,401 rows in {file} cannot be judged by exact_match: row 701"
    ):
        tried(*overrides)


OPENS = (
    "{% for m in messages %}<|{{m['role']}}|>{{m['content']}}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)


def test_an_empty_system_prompt_is_in_the_template_that_opens_a_tag(tried: Callable[..., None]) -> None:
    tiny.random_model(Path("chat"), "qwen3", 0, vocab_size=280)
    path = Path("chat/tokenizer_config.json")
    template = OPENS.replace("<think>", "{% if messages[0].role == 'system' %}<think>{% endif %}")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    chat = ["model=chat", "data.chat_template=model", "rollout.max_prompt_tokens=99"]
    overrides = ["algorithm={preset: grpo}", *chat, "reward={name: regex, pattern: '^<think>.+</think>'}"]
    tried(*overrides)
    with pytest.raises(ConfigError, match="asks for <think>, and the prompt ends with '<think>"):
        tried(*overrides, "data.system_prompt=''")


def test_a_pattern_cannot_ask_for_a_tag_that_the_template_opens(tried: Callable[..., None]) -> None:
    tiny.random_model(Path("chat"), "qwen3", 0, vocab_size=280)
    path = Path("chat/tokenizer_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": OPENS}))
    chat = ["model=chat", "data.chat_template=model", "rollout.max_prompt_tokens=99"]
    overrides = ["algorithm={preset: grpo}", *chat]
    tried(*overrides, "reward={name: regex, pattern: '^.+</think>'}")
    asks = "name: regex, pattern: '^<think>.+</think>'"
    with pytest.raises(ConfigError, match="asks for <think>, and the prompt ends with '<think>"):
        tried(*overrides, f"reward={{{asks}}}")
    tried(*overrides, f'reward={{{asks}, opened: "<think>\\n"}}')


def test_tools_that_are_methods_are_compared_with_the_chat_template(tried: Callable[..., None]) -> None:
    environment = "environment={name: 'odd_environments:WithTools'}"
    with pytest.raises(ConfigError, match="has no format for calls of tools") as refused:
        tried(environment, "algorithm.preset=grpo", "rollout.max_context_tokens=64")
    assert refused.value.fix == "a model that was made for tools, or environment.text_calls"
