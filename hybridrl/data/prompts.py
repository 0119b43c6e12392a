"""Turns the prompt column of a row into token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hybridrl.config.schema import DataConfig
from hybridrl.data.text import holds_messages, messages_as_text, without_nulls
from hybridrl.data.tokenize import Message, ModelTokenizer
from hybridrl.errors import ConfigError, DataError
from hybridrl.wording import json_kind


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """How the prompt column of a data set is written for the model."""

    data: DataConfig
    tokenizer: ModelTokenizer
    where: str

    def __post_init__(self) -> None:
        if self.data.chat_template == "model":
            self.tokenizer.require_template(self.where)
        elif self.data.system_prompt is not None:
            raise ConfigError(
                "data.system_prompt is set and data.chat_template = none",
                where=self.where,
                fix="data.chat_template=model",
            )

    def check(self, prompt: Any, place: str) -> None:
        """
        Raises:
            DataError: this format cannot write the prompt; the message says where and why.
        """
        refuse_unfit_prompt(self.data, prompt, place)

    def encode(self, prompts: Sequence[str | list[Message]], places: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt, generation prompt included.

        Args:
            places: name of each prompt's row, for messages.

        Raises:
            DataError: the chat template fails on a prompt.
        """
        texts = [self.text(prompt, place) for prompt, place in zip(prompts, places, strict=True)]
        return self.encode_texts(texts)

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts that text() has written."""
        return self.tokenizer.encode(texts, add_special_tokens=self.data.chat_template == "none")

    def text(self, prompt: str | list[Message], place: str) -> str:
        """What the model is given for a prompt, as text; the arguments and errors are those of encode()."""
        if self.data.chat_template == "none":
            return str(prompt)
        try:
            return self.tokenizer.render(self.messages(prompt))
        except DataError as error:
            system = "" if self.data.system_prompt is None else " and data.system_prompt"
            where = f"{_column(self.data)}{system}; {error.where}"
            raise DataError(f"{place}: {error.what}", where=where, fix=error.fix) from error

    def messages(self, prompt: str | list[Message]) -> list[Message]:
        """The conversation that a prompt stands for, system prompt included."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else without_nulls(prompt)
        if self.data.system_prompt is None:
            return list(messages)
        return [{"role": "system", "content": self.data.system_prompt}, *messages]


def refuse_unfit_prompt(data: DataConfig, prompt: Any, place: str) -> None:
    """Refuse a value of the prompt column that cannot be written for any model.

    Raises:
        DataError: the message says where and why.
    """
    if wrong := _wrong(data, prompt):
        raise DataError(f"{place}: the prompt {wrong}", where=_column(data))
    if holds_messages(prompt):
        raise messages_as_text(place, data.prompt_field)


def _column(data: DataConfig) -> str:
    return f"data.prompt_field = {data.prompt_field}"


def _wrong(data: DataConfig, prompt: Any) -> str | None:
    if isinstance(prompt, str):
        return None if prompt.strip() else "is empty"
    if not isinstance(prompt, list):
        return f"is {json_kind(prompt)}, neither text nor a list of chat messages"
    if data.chat_template == "none":
        return "is a list of chat messages, and data.chat_template = none writes plain text only"
    if not prompt:
        return "is an empty list"
    for message in prompt:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f"has a message without a role: {message!r:.80}"
        if not isinstance(message.get("content"), str):
            return f"has a message whose content is not text: {message!r:.80}"
    if prompt[-1]["role"] == "assistant":
        return "ends with an answer of the assistant"
    if data.system_prompt is not None and prompt[0]["role"] == "system":
        return "begins with a system message, and data.system_prompt is set too"
    return None


def text_bytes(prompt: str) -> int:
    """Bytes of a prompt, an upper bound of its tokens: no tokenizer of a language model makes more."""
    return len(prompt.encode())
