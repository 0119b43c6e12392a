"""Hints of a data set: what the teacher of self-distillation reads before each prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hybridrl.config.signals import HintConfig
from hybridrl.data.prompts import PromptFormat
from hybridrl.data.tables import Row, Table
from hybridrl.errors import DataError
from hybridrl.types import Hint, in_row
from hybridrl.wording import counted, json_kind

_WHERE = "algorithm.hint.field"


@dataclass(frozen=True, slots=True)
class HintFormat:
    """Writes the hint of a row as a conversation of its own, which precedes the row's."""

    config: HintConfig
    prompts: PromptFormat

    def check(self, table: Table) -> None:
        """Write every hint once.

        Raises:
            DataError: a row has no hint, or one that is too long, or the chat template cannot write it.
        """
        for at in range(0, len(table), _BATCH):
            part = range(at, min(at + _BATCH, len(table)))
            rows, places = [table[i] for i in part], [table.place(i) for i in part]
            for hint, place in zip(self.encode(rows, places, [()] * len(rows)), places, strict=True):
                if len(hint.token_ids) > self.config.max_tokens:
                    raise DataError(
                        f"{place}: the hint has {counted(len(hint.token_ids), 'token')}, more than "
                        f"algorithm.hint.max_tokens = {self.config.max_tokens}",
                        where=f"{_WHERE} = {self.config.field}",
                        fix="raise it, or shorten the column",
                    )

    def encode(
        self, rows: Sequence[Row], places: Sequence[str], prompts: Sequence[Sequence[int]]
    ) -> list[Hint]:
        """The hint of each row.

        Args:
            places: name of each row, for messages.
            prompts: token ids of each prompt; a hint goes after a token that begins every text.
        """
        texts = [self._text(row, place) for row, place in zip(rows, places, strict=True)]
        first: Any = self.prompts.tokenizer.hf.bos_token_id
        hints = self.prompts.encode_texts(texts)
        return [_placed(hint, prompt, first) for hint, prompt in zip(hints, prompts, strict=True)]

    def _text(self, row: Row, place: str) -> str:
        text = self.config.text.replace("{hint}", hint_of(row, self.config, place))
        if self.prompts.data.chat_template == "none":
            return text
        try:
            return self.prompts.tokenizer.render([{"role": "system", "content": text}], answered=True)
        except DataError as error:
            raise DataError(f"{place}: {error.what}", where="algorithm.hint.text", fix=error.fix) from error


def refuse_missing_hints(config: HintConfig, table: Table) -> None:
    """Look at the hint of every row, without a tokenizer.

    Raises:
        DataError: a row has none.
    """
    for index in range(len(table)):
        hint_of(table[index], config, table.place(index))


def hint_of(row: Row, config: HintConfig, place: str) -> str:
    """The demonstration in a row.

    Raises:
        DataError: it is not there, or no text.
    """
    value = in_row(row, config.field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{place}: the hint is {_wrong(value)}",
            where=f"{_WHERE} = {config.field}",
            fix="name a column that has a text in every row",
        )
    return value


_BATCH = 512


def _wrong(value: Any) -> str:
    return "not there" if value is None else "empty" if isinstance(value, str) else json_kind(value)


def _placed(hint: Sequence[int], prompt: Sequence[int], first: int | None) -> Hint:
    begins = bool(hint) and hint[0] == first
    after = int(begins and bool(prompt) and prompt[0] == first)
    return Hint(tuple(hint[after:]), after)
