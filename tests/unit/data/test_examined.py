"""What template and tokenizer make of a prompt: refused, warned of, or shown with its tokens."""

import json

import pytest
from tokenizers import processors

from hybridrl.config.schema import DataConfig, SourceConfig
from hybridrl.data.examined import Examined, examine
from hybridrl.data.prompts import PromptFormat
from hybridrl.data.tokenize import ModelTokenizer, load_tokenizer
from hybridrl.errors import DataError, ModelError
from hybridrl.models import tiny

TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
BEGIN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def turns(end: str = "<|im_end|>", begin: str = BEGIN, first: str = "") -> str:
    return first + "{% for m in messages %}" + TURN + end + "\n{% endfor %}" + begin


def examined(tokenizer: ModelTokenizer, prompt: object = "hi", **data: object) -> Examined:
    config = DataConfig.model_validate({"train": SourceConfig(path="x.jsonl"), **data})
    return examine(PromptFormat(config, tokenizer, "my.yaml:3"), prompt, "row 0 of x.jsonl")


@pytest.fixture
def own(model_folder):
    """A tokenizer of its own for each test, with another chat template."""

    def made(template: str) -> ModelTokenizer:
        tokenizer = load_tokenizer(model_folder)
        tokenizer.hf.chat_template = template
        return tokenizer

    return made


def test_a_good_prompt_is_shown_with_its_tokens_and_without_a_warning(tokenizer) -> None:
    found = examined(tokenizer)
    assert found.text == "<|begin|><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert found.tokens[:3] == ("<|begin|>", "<|im_start|>", "u") and not found.warnings
    assert tokenizer.hf.convert_ids_to_tokens(list(found.token_ids)) == list(found.tokens)
    assert found.stop_tokens == ("<|im_end|>", "<|endoftext|>")
    assert not examined(tokenizer, chat_template="none").warnings


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (turns(end="<|end|>"), "ends an answer with '<|end|>', which is none of the stop tokens <|im_end|>"),
        (turns(end="</s>"), "ends an answer with '</s>'"),
        (turns(end=""), "ends an answer with no token"),
        (turns(begin=""), "has no generation prompt: it writes '<|im_start|>assistant' before an answer"),
        (turns(first="<|begin|><|begin|>"), "begins with <|begin|> twice"),
    ],
)
def test_an_odd_template_is_warned_of(own, template: str, said: str) -> None:
    [warning] = examined(own(template)).warnings
    assert said in warning


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m['content'] }}<|endoftext|>{% endfor %}",
    ],
)
def test_a_prompt_that_ends_an_answer_is_refused(own, template: str) -> None:
    with pytest.raises(DataError, match="row 0 of x.jsonl: the prompt ends with .* no generation prompt"):
        examined(own(template))


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}",
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
        "<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}" + BEGIN,
        "{{ messages[0]['content'] }}{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}",
        "{{ messages[0]['content'] }}",
    ],
    ids=["mistral", "thinking", "one turn", "questions only"],
)
def test_templates_of_other_forms_are_not_warned_of(own, template: str) -> None:
    assert not examined(own(template)).warnings


@pytest.mark.parametrize("stop", [True, False])
def test_a_tokenizer_that_appends_a_token_is_refused_if_the_token_ends_answers(own, stop: bool) -> None:
    tokenizer = own(turns())
    token = "<|endoftext|>" if stop else "<|im_start|>"
    special = [(token, tokenizer.hf.convert_tokens_to_ids(token))]
    appends = processors.TemplateProcessing(single=f"$A {token}", special_tokens=special)
    tokenizer.hf.backend_tokenizer.post_processor = appends
    assert not examined(tokenizer).warnings, "a chat template has written its own special tokens"
    if not stop:
        examined(tokenizer, chat_template="none")
        return
    with pytest.raises(
        DataError, match=r"ends with <\|endoftext\|>, which ends an answer: the tokenizer app"
    ):
        examined(tokenizer, chat_template="none")


def test_a_model_without_a_stop_token_is_refused(own) -> None:
    endless = ModelTokenizer(own(turns()).hf, ())
    with pytest.raises(ModelError, match="no token ends an answer: .*my.yaml:3.*eos_token_id"):
        examined(endless)


def test_a_prompt_without_tokens_is_refused(own) -> None:
    with pytest.raises(DataError, match="makes no token of the prompt ''"):
        examined(own("{# nothing #}"))


@pytest.mark.parametrize(("prompt", "unknown"), [("1+1=", 0), ("1+x=", 1), ("abc", 3)])
def test_characters_that_the_tokenizer_does_not_know_are_counted(tmp_path, prompt: str, unknown: int) -> None:
    tiny.qwen3_arithmetic(tmp_path / "model", 0)
    found = examined(load_tokenizer(str(tmp_path / "model")), prompt, chat_template="none")
    said = [f"row 0 of x.jsonl: {unknown} of {len(prompt)} tokens of the prompt are <unk>"] if unknown else []
    assert [warning.partition(": the")[0] for warning in found.warnings] == said


@pytest.mark.parametrize("left", [[], ["config.json"], ["tokenizer_config.json"], ["generation_config.json"]])
def test_a_folder_without_a_vocabulary_is_refused(tmp_path, left: list[str]) -> None:
    tiny.random_model(tmp_path / "model", "qwen2", 0)
    for path in (tmp_path / "model").iterdir():
        if path.name not in left:
            path.unlink()
    for name in left:
        assert json.loads((tmp_path / "model" / name).read_text())
    with pytest.raises(ModelError, match="no tokenizer can be read from .*: it has none of tokenizer.json"):
        load_tokenizer(str(tmp_path / "model"))
