"""The test of a dialogue before a run: on short conversations it has to write what the chat template writes.

opening + answer + what follows it = the whole conversation, rendered at once
"""

from collections.abc import Sequence

from hybridrl.data.tokenize import ModelTokenizer
from hybridrl.dialogue.base import Dialogue
from hybridrl.dialogue.calls import no_call_format, probe_call
from hybridrl.environments.base import Message, ToolSchema
from hybridrl.errors import ConfigError

_WHERE = "data.chat_template"
_FIX = "a template that only appends, in the model's folder (chat_template.jinja)"
_ASKED: Message = {"role": "user", "content": "What is 3 + 4?"}
_NEXT: Message = {"role": "user", "content": "And 5 + 6?"}
_ANSWER = "It is 7."
_TOOL: ToolSchema = {
    "type": "function",
    "function": {
        "name": "probe_name",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"probe_argument": {"type": "string"}}},
    },
}


def check_dialogue(dialogue: Dialogue, tokenizer: ModelTokenizer, *, with_tools: bool) -> None:
    """
    Args:
        tokenizer: has a chat template.
        with_tools: the policy calls tools in the template's own format.

    Raises:
        ConfigError: the chat format cannot be used for several turns; the message has the first token that
            differs.
    """
    opening = dialogue.begin([_ASKED], ())
    (answer,) = tokenizer.encode([_ANSWER], add_special_tokens=False)
    _check_stop(dialogue, tokenizer, opening, answer)
    conversation = [_ASKED, {"role": "assistant", "content": _ANSWER}, _NEXT]
    _compare(dialogue, tokenizer, opening, answer, conversation, ())
    if with_tools:
        _check_tools(dialogue, tokenizer)


def _check_stop(
    dialogue: Dialogue, tokenizer: ModelTokenizer, opening: Sequence[int], answer: Sequence[int]
) -> None:
    """The token that follows an answer ends it, and is a token of its own that no text makes."""
    truncated = dialogue.more(opening, answer, [_NEXT], ())
    stop = truncated[0] if truncated else None
    if stop is None or stop not in dialogue.stop_token_ids:
        raise ConfigError(
            f"nothing ends a turn: an answer is followed by {_shown(tokenizer, truncated[:1])}, which is "
            f"none of the end tokens {_shown(tokenizer, dialogue.stop_token_ids)}",
            where=_WHERE,
            fix="add it to eos_token_id in the model's generation_config.json",
        )
    closed = dialogue.more(opening, [*answer, stop], [_NEXT], ())
    _refuse_difference(tokenizer, closed, truncated[1:], "what follows an answer that ended")
    if stop not in {
        *tokenizer.stop_token_ids,
        *tokenizer.hf.all_special_ids,
        *tokenizer.hf.added_tokens_decoder,
    }:
        raise ConfigError(
            f"a turn would end at {_shown(tokenizer, [stop])}, which is an ordinary token of texts",
            where=_WHERE,
            fix="a template that ends answers with a special token",
        )


def _check_tools(dialogue: Dialogue, tokenizer: ModelTokenizer) -> None:
    call, result = probe_call(), {"role": "tool", "content": "7", "name": "probe_name"}
    called: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
    conversation = [_ASKED, called, {**result, "tool_call_id": call["id"]}]
    tools, asked = [_TOOL], tokenizer.render([_ASKED], tools=[_TOOL])
    written = tokenizer.render([_ASKED, called], answered=True, tools=tools)
    answer_text = written.removeprefix(asked)
    (ids,) = tokenizer.encode([answer_text], add_special_tokens=False)
    stop = next((i for i, token in enumerate(ids) if token in dialogue.stop_token_ids), len(ids))
    answer = ids[: stop + 1]
    turn = dialogue.read(answer, "stop", tools)
    read = [(one.name, dict(one.arguments), one.fault) for one in turn.calls]
    expected = [(call["function"]["name"], call["function"]["arguments"], "")]
    if read != expected or written == answer_text:
        raise no_call_format(
            "the model has no format for calls of tools that can be read: "
            f"{answer_text.strip()[:80]!r} was read as {read or 'no call'}"
        )
    opening = dialogue.begin([_ASKED], tools)
    _compare(dialogue, tokenizer, opening, answer[:-1], conversation, tools)


def _compare(
    dialogue: Dialogue,
    tokenizer: ModelTokenizer,
    opening: Sequence[int],
    answer: Sequence[int],
    conversation: Sequence[Message],
    tools: Sequence[ToolSchema],
) -> None:
    """Compare a stream with the whole conversation rendered at once."""
    stream = [*opening, *answer, *dialogue.more(opening, answer, conversation[2:], tools)]
    whole_text = tokenizer.render(conversation, tools=tools)
    (whole,) = tokenizer.encode([whole_text], add_special_tokens=False)
    role = conversation[2]["role"]
    _refuse_difference(tokenizer, stream, whole, f"a conversation that goes on with a message of the {role}")


def _refuse_difference(
    tokenizer: ModelTokenizer, found: Sequence[int], expected: Sequence[int], what: str
) -> None:
    if list(found) == list(expected):
        return
    pairs = zip(found, expected, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(expected)))
    raise ConfigError(
        f"the chat template is not append-only: {what} differs at token {at}: "
        f"{_shown(tokenizer, found[at : at + 1])} turn by turn, {_shown(tokenizer, expected[at : at + 1])} "
        "rendered at once",
        where=_WHERE,
        fix=_FIX,
    )


def _shown(tokenizer: ModelTokenizer, ids: Sequence[int]) -> str:
    return ", ".join(repr(tokenizer.hf.decode([token])) for token in ids) or "nothing"
