"""Examines one prompt as the model is given it: what template and tokenizer make of the text."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hybridrl.config.sft_rm import ExamplesConfig
from hybridrl.data.examples import Example
from hybridrl.data.pictures import Encoded
from hybridrl.data.prompts import PromptFormat
from hybridrl.data.tokenize import Message, ModelTokenizer
from hybridrl.errors import DataError, ModelError
from hybridrl.wording import counted

_ANSWER = "0123456789"
"""An answer that stands for the model's, of characters that most tokenizers know."""


@dataclass(frozen=True, slots=True)
class Examined:
    """A prompt that can be answered, and what is odd about it."""

    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    """Each token as the tokenizer writes it."""

    stop_tokens: tuple[str, ...]
    warnings: tuple[str, ...]


def examine(prompts: PromptFormat, prompt: Any, place: str, pictures: Sequence[Encoded] = ()) -> Examined:
    """
    Args:
        prompt: a value of the prompt column, which PromptFormat.check() accepts.
        place: name of its row, for messages.
        pictures: those of its row.

    Raises:
        DataError: the prompt has no tokens, or ends with a token that ends an answer.
        ModelError: no token ends an answer.
    """
    tokenizer = prompts.tokenizer
    refuse_endless(tokenizer, prompts.where)
    text = prompts.text(prompt, place, len(pictures))
    ids = prompts.expanded(prompts.encode_texts([text])[0], pictures, place)
    if not ids:
        raise DataError(
            f"{place}: the tokenizer makes no token of the prompt {text!r:.60}",
            where=prompts.where,
            fix="check the tokenizer.json in the model's folder",
        )
    if ids[-1] in tokenizer.stop_token_ids:
        raise _ended(tokenizer, ids[-1], place, prompts.where, plain=prompts.data.chat_template == "none")
    names = tuple(map(str, tokenizer.hf.convert_ids_to_tokens(ids)))
    warnings = [*_second_start(tokenizer, ids), *_unknown(tokenizer, ids, place)]
    if prompts.data.chat_template == "model":
        warnings += _odd_turns(tokenizer, prompts.messages(prompt), text)
    return Examined(text, tuple(ids), names, stop_tokens(tokenizer), tuple(warnings))


def examine_example(
    data: ExamplesConfig, tokenizer: ModelTokenizer, example: Example, *, place: str, where: str
) -> tuple[str, ...]:
    """What is odd about an example as the model is trained on it.

    Args:
        place: name of its row, for messages.
        where: place in the config that names the data.

    Raises:
        DataError: its prompt ends with a token that ends an answer.
        ModelError: no token ends an answer, and answers are trained on.
    """
    plain, (first, *others) = data.chat_template == "none", example.sequences
    ids, answer_at = first.token_ids, first.trained.index(True)
    if not others:  # in a pair only the score is trained, not where an answer ends
        refuse_endless(tokenizer, where)
        if plain and answer_at and ids[answer_at - 1] in tokenizer.stop_token_ids:
            raise _ended(tokenizer, ids[answer_at - 1], place, where, plain=True)
    warnings = [*_second_start(tokenizer, ids), *_unknown(tokenizer, ids, place)]
    if not plain:
        system = [] if data.system_prompt is None else [{"role": "system", "content": data.system_prompt}]
        messages: list[Message] = [*system, {"role": "user", "content": _ANSWER}]
        with contextlib.suppress(DataError):  # a template may refuse what no row has
            warnings += _odd_turns(tokenizer, messages, tokenizer.render(messages))
    return tuple(warnings)


def refuse_endless(tokenizer: ModelTokenizer, where: str) -> None:
    """
    Raises:
        ModelError: no token ends an answer, so that every answer would be cut at its longest.
    """
    if not tokenizer.stop_token_ids:
        raise ModelError(
            f"no token ends an answer: the tokenizer of {tokenizer.hf.name_or_path} has no eos_token, and "
            "generation_config.json and config.json have no eos_token_id",
            where=where,
            fix="set eos_token_id in generation_config.json",
        )


def stop_tokens(tokenizer: ModelTokenizer) -> tuple[str, ...]:
    """The tokens that end an answer, as the tokenizer writes them."""
    return tuple(map(str, tokenizer.hf.convert_ids_to_tokens(list(tokenizer.stop_token_ids))))


def _ended(tokenizer: ModelTokenizer, token: int, place: str, where: str, *, plain: bool) -> DataError:
    end = tokenizer.hf.convert_ids_to_tokens(token)
    if plain:
        who, fix = "the tokenizer appends it", "remove it from the post_processor of tokenizer.json"
    else:
        who = "the chat template writes no generation prompt after it"
        fix = "write what begins an answer, if add_generation_prompt, at the end of the chat template"
    what = f"{place}: the prompt ends with {end}, which ends an answer: {who}"
    return DataError(what, where=where, fix=fix)


def _second_start(tokenizer: ModelTokenizer, ids: list[int]) -> list[str]:
    bos = tokenizer.hf.bos_token_id
    if bos is None or ids[:2] != [bos, bos]:
        return []
    return [f"the prompt begins with {tokenizer.hf.bos_token} twice: once is what models are trained on"]


def _unknown(tokenizer: ModelTokenizer, ids: list[int], place: str) -> list[str]:
    unknown = tokenizer.hf.unk_token_id
    count = sum(token == unknown for token in ids)
    if not count:
        return []
    return [
        f"{place}: {count} of {counted(len(ids), 'token')} of the prompt are {tokenizer.hf.unk_token}: the "
        "tokenizer does not know all of its characters"
    ]


def _odd_turns(tokenizer: ModelTokenizer, messages: list[Message], begun: str) -> list[str]:
    """What is odd about the template's beginning and end of an answer; nothing where it takes no answers.

    Args:
        begun: the messages as the model is given them.
    """
    told = [*messages, {"role": "assistant", "content": _ANSWER}]
    try:
        asked, answered = (tokenizer.render(turns, answered=True) for turns in (messages, told))
    except DataError:
        return []
    before, found, end = answered.rpartition(_ANSWER)
    if not found:
        return []
    return [*_no_beginning(begun, asked, before), *_no_end(tokenizer, end)]


def _no_beginning(begun: str, asked: str, before: str) -> list[str]:
    between = before.removeprefix(begun).strip()
    if begun != asked or not before.startswith(begun) or not between:
        return []
    return [
        f"the chat template has no generation prompt: it writes {between!r} before an answer, and a prompt "
        "ends without it, whatever add_generation_prompt says"
    ]


def _no_end(tokenizer: ModelTokenizer, end: str) -> list[str]:
    ids = tokenizer.encode([end], add_special_tokens=False)[0] if end else []
    if any(token in tokenizer.stop_token_ids for token in ids):
        return []
    stops = ", ".join(stop_tokens(tokenizer))
    what = (
        f"with {end.strip()!r}, which is none of the stop tokens {stops}" if end.strip() else "with no token"
    )
    return [
        f"the chat template ends an answer {what}: an answer goes on after its turn; add the token to "
        "eos_token_id in generation_config.json"
    ]
