"""Turns rows into training examples: conversations whose answers are trained on, and pairs of answers.

A conversation is tokenised segment by segment, prompts and answers separately, as in a rollout. An answer is
trained on up to the token that ends it; what a template writes after that token (a line end) is context only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, cast

import numpy as np

from hybridrl.batch import TokenBlock
from hybridrl.config.sft_rm import ExamplesConfig, RMDataConfig, SFTDataConfig
from hybridrl.data.tables import Row
from hybridrl.data.text import holds_messages, messages_as_text, without_nulls
from hybridrl.data.tokenize import Message, ModelTokenizer
from hybridrl.errors import ConfigError, DataError
from hybridrl.wording import json_kind

Segment = tuple[str, bool]
"""Text of a part of a conversation, and whether it is an answer of the model."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of one conversation."""

    token_ids: list[int]
    trained: list[bool]
    """Whether each token is trained on. In a pair only one token is: an extra one at the end, which stands
    for the score."""


@dataclass(frozen=True, slots=True)
class Example:
    """One training example; its sequences enter the same optimizer step."""

    sequences: tuple[Encoded, ...]
    """One conversation; in a pair, the chosen one and the rejected one."""

    margin: float = 0.0
    """Least wanted difference of reward in a pair."""

    @property
    def num_tokens(self) -> int:
        return sum(len(sequence.token_ids) for sequence in self.sequences)


class ExampleFormat(Protocol):
    """How the rows of a data set become examples."""

    def encode(self, rows: Sequence[Row], places: Sequence[str]) -> list[Example]:
        """
        Args:
            places: name of each row, for messages.

        Raises:
            DataError: a row is no example; says which and why.
        """
        ...


class Conversations:
    """The format of supervised fine-tuning."""

    @staticmethod
    def columns(data: SFTDataConfig) -> tuple[str, ...]:
        """The columns that every row has to have."""
        return (data.messages_field,) if data.messages_field else (data.prompt_field, data.response_field)

    def __init__(self, data: SFTDataConfig, tokenizer: ModelTokenizer, where: str) -> None:
        """
        Args:
            where: the place in the config that names the data.

        Raises:
            ConfigError: the tokenizer lacks what the format needs, or two keys contradict each other.
        """
        if data.messages_field is not None and data.chat_template == "none":
            raise ConfigError(
                "data.messages_field needs a chat template, and data.chat_template = none",
                where=where,
                fix="data.chat_template=model",
            )
        self._data, self._writer = data, _Writer(data, tokenizer, where)

    def encode(self, rows: Sequence[Row], places: Sequence[str]) -> list[Example]:
        segments = [list(self._segments(row, place)) for row, place in zip(rows, places, strict=True)]
        sequences = self._writer.tokenise(segments)
        for sequence, place in zip(sequences, places, strict=True):
            if not any(sequence.trained):
                raise DataError(f"{place}: no token of the answer is left to train on")
        return [Example((sequence,)) for sequence in sequences]

    def _segments(self, row: Row, place: str) -> Iterator[Segment]:
        field = self._data.messages_field
        if field is None:
            prompt, answer = (
                _column(row, f, place) for f in (self._data.prompt_field, self._data.response_field)
            )
            return self._writer.answered(prompt, answer, place)
        return self._writer.conversation(_column(row, field, place), place)


class Pairs:
    """The format of reward models: `chosen` and `rejected` are answers to `prompt`, or whole
    conversations."""

    @staticmethod
    def columns(data: RMDataConfig) -> tuple[str, ...]:
        """The columns that every row has to have; a prompt may be part of the conversations."""
        margin = (data.margin_field,) if data.margin_field else ()
        return (data.chosen_field, data.rejected_field, *margin)

    def __init__(self, data: RMDataConfig, tokenizer: ModelTokenizer, where: str) -> None:
        """The arguments and errors are those of Conversations()."""
        self._data, self._writer = data, _Writer(data, tokenizer, where)
        self._score_token = tokenizer.stop_token_ids[0] if tokenizer.stop_token_ids else 0

    def encode(self, rows: Sequence[Row], places: Sequence[str]) -> list[Example]:
        segments = list(chain.from_iterable(map(self._both, rows, places)))
        scored = [self._scored(sequence) for sequence in self._writer.tokenise(segments)]
        for place, chosen, rejected in zip(places, scored[::2], scored[1::2], strict=True):
            if chosen == rejected:
                raise DataError(f"{place}: chosen and rejected are the same", fix="drop the row")
        margins = [self._margin(row, place) for row, place in zip(rows, places, strict=True)]
        return [
            Example((chosen, rejected), margin)
            for chosen, rejected, margin in zip(scored[::2], scored[1::2], margins, strict=True)
        ]

    def _both(self, row: Row, place: str) -> list[list[Segment]]:
        return [
            list(self._segments(row, field, place))
            for field in (self._data.chosen_field, self._data.rejected_field)
        ]

    def _segments(self, row: Row, field: str, place: str) -> Iterator[Segment]:
        answer = _column(row, field, place)
        if isinstance(answer, list):
            return self._writer.conversation(answer, place)
        return self._writer.answered(_column(row, self._data.prompt_field, place), answer, place)

    def _scored(self, sequence: Encoded) -> Encoded:
        """The sequence up to the end of its last answer, where a rollout ends too, plus a token that stands
        for the score. The model never reads that token: its position gets the score of all tokens before
        it."""
        end = len(sequence.trained) - sequence.trained[::-1].index(True)
        return Encoded([*sequence.token_ids[:end], self._score_token], [*[False] * end, True])

    def _margin(self, row: Row, place: str) -> float:
        field = self._data.margin_field
        if field is None:
            return 0.0
        value = _column(row, field, place)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise DataError(f"{place}: {field} = {value!r} is not a finite number")
        return float(value)


class _Writer:
    """Writes conversations as text and tokenises them."""

    def __init__(self, data: ExamplesConfig, tokenizer: ModelTokenizer, where: str) -> None:
        self._data, self._tokenizer = data, tokenizer
        if data.chat_template == "model":
            tokenizer.require_template(where)
            return
        if data.system_prompt is not None:
            raise ConfigError(
                "data.system_prompt is set and data.chat_template = none",
                where=where,
                fix="data.chat_template=model",
            )
        if tokenizer.hf.eos_token_id is None:
            raise ConfigError(
                "the tokenizer has no token that ends an answer", where=where, fix="use one with an eos_token"
            )

    def answered(self, prompt: Any, answer: Any, place: str) -> Iterator[Segment]:
        """A prompt and the answer to it."""
        if not isinstance(answer, str) or not answer.strip():
            raise DataError(f"{place}: the answer is {_shown(answer)}, not text", fix="drop the row")
        if self._data.chat_template == "none":
            if not isinstance(prompt, str) or not prompt:
                raise DataError(f"{place}: the prompt is {_shown(prompt)}, not text")
            return iter(((prompt, False), (answer, True)))
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not isinstance(asked, list):
            raise DataError(f"{place}: the prompt is {_shown(prompt)}, neither text nor a list of messages")
        return self.conversation([*asked, {"role": "assistant", "content": answer}], place)

    def conversation(self, messages: Any, place: str) -> Iterator[Segment]:
        """A list of messages, up to its last answer.

        Raises:
            DataError: it has no answer, or the template fails on it or renders its beginning differently once
                more turns follow.
        """
        messages = without_nulls(messages)
        _refuse_malformed(messages, place)
        if self._data.system_prompt is not None:
            messages = [{"role": "system", "content": self._data.system_prompt}, *messages]
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            raise DataError(f"{place}: no message of the assistant to train on")
        written = ""
        for turn, i in enumerate(answers):
            for text, trained in (
                (self._render(messages[:i], False, place), False),
                (self._render(messages[: i + 1], True, place), True),
            ):
                if not text.startswith(written):
                    raise DataError(
                        f"{place}: the chat template renders what comes before answer {turn + 1} differently "
                        "once more turns follow, so not all of its answers can be trained on at once",
                        fix="give each answer its own row, with the turns before it as its prompt",
                    )
                yield text[len(written) :], trained
                written = text

    def _render(self, messages: Sequence[Message], answered: bool, place: str) -> str:
        try:
            return self._tokenizer.render(messages, answered=answered) if messages else ""
        except DataError as error:
            raise DataError(f"{place}: {error.what}", where=error.where, fix=error.fix) from error

    def tokenise(self, conversations: Sequence[Sequence[Segment]]) -> list[Encoded]:
        ids = iter(self._ids([segment for segments in conversations for segment in segments]))
        return [self._joined([(next(ids), trained) for _, trained in segments]) for segments in conversations]

    def _ids(self, segments: Sequence[Segment]) -> list[list[int]]:
        """Token ids of all segments, in two tokenizer calls. In plain text a prompt gets the tokenizer's
        special tokens, and an answer an end token."""
        plain = self._data.chat_template == "none"
        asked = iter(
            self._tokenizer.encode([t for t, trained in segments if not trained], add_special_tokens=plain)
        )
        told = iter(
            self._tokenizer.encode([t for t, trained in segments if trained], add_special_tokens=False)
        )
        end: list[int] = [cast(int, self._tokenizer.hf.eos_token_id)] if plain else []
        return [[*next(told), *end] if trained else next(asked) for _, trained in segments]

    def _joined(self, parts: Sequence[tuple[list[int], bool]]) -> Encoded:
        tokens: list[int] = []
        trained: list[bool] = []
        for ids, is_answer in parts:
            end = self._end(ids) if is_answer else 0
            tokens += ids
            trained += [True] * end + [False] * (len(ids) - end)
        if trained[0]:  # no token before it predicts it
            trained[0] = False
        return Encoded(tokens, trained)

    def _end(self, ids: Sequence[int]) -> int:
        """Number of tokens of an answer up to the last one that ends it; all of them if none does."""
        stops = self._tokenizer.stop_token_ids
        return next((i + 1 for i in range(len(ids) - 1, -1, -1) if ids[i] in stops), len(ids))


def block_of(examples: Sequence[Example]) -> TokenBlock:
    """A block with the examples' sequences as its rows, in order."""
    sequences = [sequence for example in examples for sequence in example.sequences]
    length_N = np.array([len(sequence.token_ids) for sequence in sequences], np.int64)
    trained_T = np.array([trained for sequence in sequences for trained in sequence.trained], bool)
    return TokenBlock(
        token_T=np.array([token for sequence in sequences for token in sequence.token_ids], np.int32),
        start_N=np.concatenate([[0], np.cumsum(length_N)]),
        prompt_tokens_N=np.array([sequence.trained.index(True) for sequence in sequences], np.int32),
        loss_mask_T=trained_T,
    )


def _column(row: Mapping[str, Any], field: str, place: str) -> Any:
    if field not in row:
        raise DataError(f"{place} has no column {field!r}", fix=f"its columns are {', '.join(row)}")
    if holds_messages(row[field]):
        raise messages_as_text(place, field)
    return row[field]


def _refuse_malformed(messages: Any, place: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{place}: the conversation is {_shown(messages)}, not a list of messages")
    for message in messages:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(k), str) for k in ("role", "content")
        ):
            raise DataError(f"{place}: a message needs a role and content, both text: {message!r:.80}")


def _shown(value: Any) -> str:
    empty = not value.strip() if isinstance(value, str) else value == []
    return "empty" if empty else json_kind(value)
