"""What template and tokenizer make of an example of fine-tuning: refused, or warned of."""

import pytest
from tokenizers import processors

from hybridrl.config.sft_rm import RMDataConfig, SFTDataConfig
from hybridrl.data.examined import examine_example
from hybridrl.data.examples import Conversations, Pairs
from hybridrl.data.tokenize import ModelTokenizer, load_tokenizer
from hybridrl.errors import DataError, ModelError
from hybridrl.models import tiny

TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
BEGIN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
SFT = {"prompt": "hi", "response": "ho"}
RM = {"prompt": "hi", "chosen": "ho", "rejected": "he"}


def turns(end: str = "<|im_end|>", begin: str = BEGIN, first: str = "") -> str:
    return first + "{% for m in messages %}" + TURN + end + "\n{% endfor %}" + begin


def examined(tokenizer: ModelTokenizer, row: dict[str, str] = SFT, **data: object) -> tuple[str, ...]:
    kind, form = (SFTDataConfig, Conversations) if "response" in row else (RMDataConfig, Pairs)
    config = kind.model_validate({"train": "x.jsonl", **data})
    [example] = form(config, tokenizer, "my.yaml:3").encode([row], ["row 1 of x.jsonl"])
    return examine_example(config, tokenizer, example, place="row 1 of x.jsonl", where="my.yaml:3")


@pytest.fixture
def own(model_folder):
    def made(template: str) -> ModelTokenizer:
        tokenizer = load_tokenizer(model_folder)
        tokenizer.hf.chat_template = template
        return tokenizer

    return made


@pytest.mark.parametrize("row", [SFT, RM], ids=["sft", "rm"])
@pytest.mark.parametrize("data", [{}, {"chat_template": "none"}, {"system_prompt": "Be brief."}])
def test_a_good_example_has_no_warning(tokenizer, row, data) -> None:
    assert examined(tokenizer, row, **data) == ()


@pytest.mark.parametrize("row", [SFT, RM], ids=["sft", "rm"])
@pytest.mark.parametrize(
    ("template", "said"),
    [
        (turns(end="<|end|>"), "ends an answer with '<|end|>', which is none of the stop tokens"),
        (turns(end=""), "ends an answer with no token"),
        (turns(begin=""), "has no generation prompt: it writes '<|im_start|>assistant' before an answer"),
        (turns(first="<|begin|><|begin|>"), "begins with <|begin|> twice"),
    ],
)
def test_an_odd_template_is_warned_of(own, row, template: str, said: str) -> None:
    [warning] = examined(own(template), row)
    assert said in warning


@pytest.mark.parametrize("row", [SFT, RM], ids=["sft", "rm"])
def test_characters_that_the_tokenizer_does_not_know_are_counted(tmp_path, row) -> None:
    tiny.qwen3_arithmetic(tmp_path / "tiny", 0)
    digits = {key: "1+1=" if key == "prompt" else f"{2 + (key == 'rejected')}" for key in row}
    tokenizer = load_tokenizer(str(tmp_path / "tiny"))
    assert examined(tokenizer, digits, chat_template="none") == ()
    [warning] = examined(tokenizer, digits | {"prompt": "a+1="}, chat_template="none")
    assert warning.startswith("row 1 of x.jsonl: 1 of ") and "are <unk>" in warning


def test_an_end_that_the_tokenizer_appends_to_a_prompt_is_refused(model_folder) -> None:
    tokenizer = load_tokenizer(model_folder)
    end = tokenizer.hf.convert_tokens_to_ids("<|im_end|>")
    tokenizer.hf.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", end)]
    )
    with pytest.raises(DataError, match="row 1 of x.jsonl: the prompt ends with .*appends it"):
        examined(tokenizer, chat_template="none")
    assert examined(tokenizer) == (), "a template writes its own"


def test_answers_that_nothing_ends_are_not_trained_on(own) -> None:
    endless = ModelTokenizer(own(turns()).hf, ())
    with pytest.raises(ModelError, match="no token ends an answer"):
        examined(endless)
