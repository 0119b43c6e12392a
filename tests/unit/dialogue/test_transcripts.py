"""Transcripts with calls of tools: which tokens are trained on, and rows that are refused."""

import dialogue_values as values
import pytest

from hybridrl.config.schema import SourceConfig
from hybridrl.config.sft_rm import SFTDataConfig
from hybridrl.dialogue import transcripts
from hybridrl.dialogue.template import TemplateDialogue
from hybridrl.dialogue.transcripts import SFTExamples
from hybridrl.errors import ConfigError, DataError

ADD = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 3, "b": 4}}}
MESSAGES = [
    {"role": "user", "content": "3+4?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "7", "name": "add", "tool_call_id": "1"},
    {"role": "assistant", "content": "It is 7.", "tool_calls": None},
    {"role": "user", "content": "Thanks."},
]


@pytest.fixture(autouse=True)
def without_model_folder(monkeypatch):
    monkeypatch.setattr(
        transcripts, "open_dialogue", lambda tokenizer, folder, data, with_tools: TemplateDialogue(tokenizer)
    )


def form_of(tokenizer, **data):
    given = {"messages_field": "messages", "tools_field": "tools", **data}
    return SFTExamples(SFTDataConfig(train=SourceConfig(path="unused.jsonl"), **given), tokenizer, "here")


def encoded(tokenizer, row, **data):
    (example,) = form_of(tokenizer, **data).encode([row], ["row 0"])
    return example.sequences[0]


def trained_text(tokenizer, found):
    runs, last = [], False
    for token, trained in zip(found.token_ids, found.trained, strict=True):
        if trained and not last:
            runs.append([])
        if trained:
            runs[-1].append(token)
        last = trained
    return [tokenizer.hf.decode(run) for run in runs]


@pytest.mark.parametrize("template", [values.CHATML, values.HEADERS], ids=["chatml", "headers"])
def test_what_the_policy_says_is_trained_on_and_nothing_else(template):
    tokenizer = values.tokenizer_of(template)
    found = encoded(tokenizer, {"messages": MESSAGES, "tools": [ADD]})
    end = tokenizer.hf.decode(list(tokenizer.stop_token_ids))
    call, answer = trained_text(tokenizer, found)
    assert '"name": "add"' in call and call.endswith(end) and answer == f"It is 7.{end}"
    plain = [
        {k: v if v is not None else "" for k, v in m.items() if k != "tool_calls" or v} for m in MESSAGES
    ]
    whole = tokenizer.render(plain[:4], answered=True, tools=[ADD])
    assert whole.startswith(tokenizer.hf.decode(found.token_ids))


def test_the_tokens_are_those_of_an_episode():
    tokenizer = values.tokenizer_of(values.CHATML)
    found = encoded(tokenizer, {"messages": MESSAGES, "tools": [ADD]}, system_prompt="Be brief.")
    dialogue = TemplateDialogue(tokenizer)
    opening = dialogue.begin([{"role": "system", "content": "Be brief."}, MESSAGES[0]], [ADD])
    assert found.token_ids[: len(opening)] == opening and not any(found.trained[: len(opening)])
    answer = dialogue.write(MESSAGES[1], [ADD])
    between = dialogue.more(opening, answer, MESSAGES[2:3], [ADD])
    start = len(opening)
    assert found.token_ids[start : start + len(answer) + len(between)] == [*answer, *between]


def test_a_row_without_tools_is_a_conversation():
    tokenizer = values.tokenizer_of(values.CHATML)
    found = encoded(tokenizer, {"messages": MESSAGES[:1] + MESSAGES[3:4], "tools": None})
    assert trained_text(tokenizer, found) == ["It is 7.<|im_end|>"]


def with_message(message):
    return {"messages": [MESSAGES[0], message], "tools": [ADD]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": "hi", "tools": []}, "is a string, not a list of messages|is text"),
        ({"messages": [], "tools": []}, "not a list of messages"),
        ({"messages": MESSAGES[:1], "tools": []}, "no message of the assistant"),
        ({"messages": MESSAGES[1:], "tools": [ADD]}, "begins with an answer"),
        ({"messages": MESSAGES, "tools": [{"name": "add"}]}, "no list of tools in OpenAI's form"),
        ({"messages": MESSAGES, "tools": "add"}, "no list of tools in OpenAI's form"),
        (with_message({"role": "assistant"}), "needs a role .* and content, or calls of tools"),
        (with_message({"role": "robot", "content": "x"}), "needs a role"),
        (
            with_message({"role": "assistant", "content": "x", "tool_calls": [{"name": "add"}]}),
            "tool_calls are not in OpenAI's form",
        ),
    ],
)
def test_rows_that_are_refused(row, message):
    with pytest.raises(DataError, match=message):
        encoded(values.tokenizer_of(values.CHATML), row)


def test_keys_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="tools_field needs conversations in a chat template"):
        form_of(values.tokenizer_of(values.CHATML), messages_field=None)


def test_without_tools_field_nothing_changes():
    tokenizer = values.tokenizer_of(values.CHATML)
    found = encoded(tokenizer, {"messages": MESSAGES[:1] + MESSAGES[3:4]}, tools_field=None)
    assert trained_text(tokenizer, found) == ["It is 7.<|im_end|>"]
    assert SFTExamples.columns(SFTDataConfig(train=SourceConfig(path="x"), tools_field="t")) == (
        "prompt",
        "response",
        "t",
    )
