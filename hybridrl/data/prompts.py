"""Turns the prompt column of a row into token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridrl.config.schema import DataConfig
from hybridrl.data.pictures import TAG, Encoded, PictureFormat, split
from hybridrl.data.text import holds_messages, messages_as_text, without_nulls
from hybridrl.data.tokenize import Message, ModelTokenizer
from hybridrl.errors import ConfigError, DataError
from hybridrl.models.vision import VisionSpec
from hybridrl.wording import counted, json_kind


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """How the prompt column of a data set is written for the model."""

    data: DataConfig
    tokenizer: ModelTokenizer
    where: str
    pictures: PictureFormat | None = None
    """How pictures are given to the model; None: prompts are text."""

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

    def encode_rows(
        self, rows: Sequence[Mapping[str, Any]], places: Sequence[str]
    ) -> list[tuple[list[int], tuple[Encoded, ...]]]:
        """Token ids of each row's prompt, with a placeholder for every token of a picture, and its pictures.

        Raises:
            DataError: as encode(); or a picture cannot be read, or the prompt has other places for pictures
                than the row has pictures.
        """
        parts = [split(self.data, row, place) for row, place in zip(rows, places, strict=True)]
        texts = [
            self.text(prompt, place, len(pictures))
            for (prompt, pictures), place in zip(parts, places, strict=True)
        ]
        return [
            (self.expanded(ids, pictures, place), pictures)
            for ids, (_, pictures), place in zip(self.encode_texts(texts), parts, places, strict=True)
        ]

    def expanded(self, ids: list[int], pictures: Sequence[Encoded], place: str) -> list[int]:
        """Token ids with as many placeholders for each picture as it has tokens.

        Args:
            ids: token ids of the text, with one placeholder for each picture.

        Raises:
            DataError: there are more or fewer placeholders, or a picture cannot be read.
        """
        if self.pictures is None:
            return ids
        token = self.pictures.vision.image_token
        if ids.count(token) != len(pictures):
            name = self.tokenizer.hf.convert_ids_to_tokens(token)
            raise DataError(
                f"{place}: the text of the prompt has {name} {ids.count(token)} times, and the row has "
                f"{counted(len(pictures), 'picture')}",
                where=_column(self.data),
                fix=f"write {TAG} in place of {name}, or use a chat template that writes it for each picture",
            )
        counts = iter(self.pictures.tokens(pictures, place))
        return [one for id_ in ids for one in ([id_] * next(counts) if id_ == token else [id_])]

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts that text() has written."""
        return self.tokenizer.encode(texts, add_special_tokens=self.data.chat_template == "none")

    def text(self, prompt: str | list[Message], place: str, num_pictures: int = 0) -> str:
        """What the model is given for a prompt, as text, with one placeholder for each picture.

        The arguments and errors are those of encode().

        Args:
            num_pictures: pictures of the prompt, which `split` has taken out of its row.
        """
        if self.data.chat_template == "none":
            if not num_pictures:
                return str(prompt)
            assert self.pictures is not None
            return str(prompt).replace(TAG, placeholder(self.tokenizer, self.pictures.vision))
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


def placeholder(tokenizer: ModelTokenizer, vision: VisionSpec) -> str:
    """What stands for a picture in a text without a chat template."""
    ids = [vision.image_start, vision.image_token, vision.image_end]
    return "".join(tokenizer.hf.convert_ids_to_tokens(ids))


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
        content = message.get("content")
        if not isinstance(content, str) and not (data.images and isinstance(content, list)):
            return f"has a message whose content is not text: {message!r:.80}"
    if prompt[-1]["role"] == "assistant":
        return "ends with an answer of the assistant"
    if data.system_prompt is not None and prompt[0]["role"] == "system":
        return "begins with a system message, and data.system_prompt is set too"
    return None


def text_bytes(prompt: str) -> int:
    """Bytes of a prompt, an upper bound of its tokens: no tokenizer of a language model makes more."""
    return len(prompt.encode())
