"""Prompts of a run: an endless stream, in a new order at each epoch, that can be reset to any position."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hybridrl import registry
from hybridrl.config.options import taken
from hybridrl.config.schema import DataConfig, SourceConfig
from hybridrl.config.signals import HintConfig
from hybridrl.data.examined import Examined, examine
from hybridrl.data.files import open_files
from hybridrl.data.hints import HintFormat
from hybridrl.data.hub_rows import open_dataset
from hybridrl.data.order import EpochOrder, Stream
from hybridrl.data.pictures import Encoded, PictureFormat, split
from hybridrl.data.prompts import PromptFormat, text_bytes
from hybridrl.data.tables import Row, Rows, Table, columns_or_null
from hybridrl.data.text import refuse_broken_text
from hybridrl.data.tokenize import ModelTokenizer
from hybridrl.errors import ConfigError, DataError
from hybridrl.outside import user_code
from hybridrl.types import Hint, Prompt
from hybridrl.wording import counted, json_kind, row_place

_BATCH = 512
"""Prompts tokenised together."""


class TablePrompts(Stream[Prompt]):
    """A PromptSource over a table."""

    def __init__(
        self,
        table: Table,
        prompts: PromptFormat,
        *,
        name: str,
        split: str,
        seed: int,
        max_prompt_tokens: int,
        hints: HintFormat | None = None,
    ) -> None:
        """
        Args:
            name: name of the data in messages.
            split: first part of every uid.
            max_prompt_tokens: a longer prompt is an error when it is taken.
            hints: makes the hint of each prompt; None: prompts have none.
        """
        self._hints = hints
        order = EpochOrder(len(table), seed=seed, shuffle=prompts.data.shuffle, split=split)
        super().__init__(table, order)
        self._prompts, self._name, self._split = prompts, name, split
        self._max_prompt_tokens = max_prompt_tokens

    def examined(self) -> Examined:
        """The first prompt as the model is given it.

        Raises:
            DataError, ModelError: no prompt can be answered as template and tokenizer are.
        """
        place = self.rows.place(0)
        prompt, pictures = split(self._prompts.data, self.rows[0], place)
        if self._prompts.pictures is not None:
            self._prompts.pictures.arrays(Prompt(place, (), {}, pictures=pictures))
        return examine(self._prompts, prompt, place, pictures)

    def _read(self, indices: Sequence[int]) -> list[Prompt]:
        found: list[Prompt] = []
        for at in range(0, len(indices), _BATCH):
            part = indices[at : at + _BATCH]
            rows = [self.rows[i] for i in part]
            places = [self.rows.place(i) for i in part]
            encoded = self._prompts.encode_rows(rows, places)
            ids = [tokens for tokens, _ in encoded]
            hints = self._hints.encode(rows, places, ids) if self._hints else [None] * len(rows)
            taken = zip(part, rows, encoded, hints, strict=True)
            found += [self._prompt(i, row, *one, hint) for i, row, one, hint in taken]
        return found

    def _prompt(
        self, index: int, row: Row, tokens: list[int], pictures: tuple[Encoded, ...], hint: Hint | None
    ) -> Prompt:
        if len(tokens) > self._max_prompt_tokens:
            long = [(index, len(tokens))]
            raise too_long(long, self.rows, self._name, self._max_prompt_tokens, self._prompts.where)
        source = row.get(_SOURCE) or self.rows.source(index)
        data = self._prompts.data
        if data.images is not None:  # whoever gets the row needs no pictures
            whole, _ = split(data, row, self.rows.place(index))
            row = {**row, data.prompt_field: whole, data.images.field: None}
        return Prompt(f"{self._split}/{index}", tuple(tokens), row, source, hint, pictures)


def load_source(
    source: SourceConfig,
    data: DataConfig,
    tokenizer: ModelTokenizer,
    *,
    split: str,
    seed: int,
    max_prompt_tokens: int,
    where: str,
    hint: HintConfig | None = None,
    pictures: PictureFormat | None = None,
) -> TablePrompts:
    """Open a file or make a task's rows, and refuse at once whatever is wrong with any of them.

    It costs one pass over the prompts; only those that could be too long are tokenised.

    Args:
        split: "train" or "heldout"; a task makes other rows for each.
        where: the config place, named in errors.
        hint: what the teacher reads in addition; None: nothing.
        pictures: how pictures are given to the model, if data.images is set.

    Raises:
        ConfigError: no such task, or options that it does not take; a chat template that the tokenizer lacks.
        DataError: no such file, no rows, no such column, a row that is no prompt, or one that is too long.
    """
    name, table = open_rows(source, split=split, seed=seed, where=where)
    prompts = PromptFormat(data, tokenizer, where, pictures)
    refuse_unread_pictures(table, data)
    _check(table, prompts, name, max_prompt_tokens)
    refuse_odd_sources(table)
    hints = None if hint is None else HintFormat(hint, prompts)
    if hints is not None:
        hints.check(table)
    return TablePrompts(
        table, prompts, name=name, split=split, seed=seed, max_prompt_tokens=max_prompt_tokens, hints=hints
    )


def open_rows(source: SourceConfig, *, split: str, seed: int, where: str) -> tuple[str, Table]:
    """The name and the rows of files, a data set of the hub, or a task; arguments as for load_source().

    Raises:
        ConfigError, DataError: it cannot be opened, or has no rows.
    """
    if source.path is not None:
        table = open_files(source.paths, where=where)
    elif source.hub is not None:
        table = open_dataset(source.hub, source.options, split=split, where=where)
    else:
        assert source.task is not None
        rows = make_rows(source.task, source.options, split=split, seed=seed, where=where)
        table = Rows(rows, source.task)
    if not len(table):
        raise DataError(f"{source.name} has no rows", where=where)
    return source.name, table


def make_rows(
    task: str, options: Mapping[str, Any], *, split: str, seed: int, where: str
) -> list[dict[str, Any]]:
    """The rows of a procedural task.

    Args:
        split, seed: determine the seed of the task, unless its options set one.

    Raises:
        ConfigError: no such task, or options that it does not take.
        DataError: it did not return a list of dicts.
        UserCodeError: it is code from outside, and raises.
    """
    key = f"data.{split}.task"
    make = registry.find("hybridrl.data.tasks", task, where=where, key=key)
    words = np.random.SeedSequence([seed, zlib.crc32(split.encode())]).generate_state(1)
    given = {
        "seed": int(words[0] >> 1),
        **options,
    }  # 31 bits: libraries seed numpy with it, and with seed + 1
    given = taken(make, given, title=f"task {task}", where=where, beside=("path", "task"))
    try:
        with user_code(task, key=key, where=where, plugin=make):
            rows = make(**given)
    except ConfigError as error:  # a task does not know where its options are written
        raise ConfigError(error.what, where=error.where or where, fix=error.fix) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"task {task} did not return a list of dicts", where=where)
    for index, row in enumerate(rows):
        refuse_broken_text(row, row_place(index, task))
    return rows


def _check(table: Table, prompts: PromptFormat, name: str, max_prompt_tokens: int) -> None:
    """Checks the form of every prompt, and its length if its bytes plus the template's tokens exceed the
    limit."""
    template_tokens: int | None = None
    suspects: list[int] = []
    for index, (prompt, pictures) in enumerate(split_prompts(table, prompts.data)):
        place = table.place(index)
        prompts.check(prompt, place)
        if template_tokens is None and not isinstance(prompt, list):
            template_tokens = len(prompts.encode(["a"], [place])[0])
        most = 0 if isinstance(prompt, list) else text_bytes(prompt) + (template_tokens or 0)
        if isinstance(prompt, list) or pictures or most > max_prompt_tokens:
            suspects.append(index)
    long: list[tuple[int, int]] = []
    for at in range(0, len(suspects), _BATCH):
        part = suspects[at : at + _BATCH]
        places = [table.place(i) for i in part]
        encoded = prompts.encode_rows([table[i] for i in part], places)
        counted = zip(part, (len(ids) for ids, _ in encoded), strict=True)
        long += [(i, num_tokens) for i, num_tokens in counted if num_tokens > max_prompt_tokens]
    if long:
        raise too_long(long, table, name, max_prompt_tokens, prompts.where)


def split_prompts(table: Table, data: DataConfig) -> Iterator[tuple[Any, tuple[Encoded, ...]]]:
    """The prompt of every row without its pictures, and these.

    Raises:
        DataError: a row has no prompt, or other pictures than places for them.
    """
    if data.images is None:
        yield from ((prompt, ()) for prompt in table.column(data.prompt_field))
        return
    names = (data.prompt_field, data.images.field)
    for index, values in enumerate(columns_or_null(table, names)):
        yield split(data, dict(zip(names, values, strict=True)), table.place(index))


def refuse_unread_pictures(table: Table, data: DataConfig) -> None:
    """Refuse rows with pictures that the config does not mention: the model would be asked about pictures
    that it does not get. The first row is looked at.

    Raises:
        DataError: there are pictures.
    """
    if data.images is None and table[0].get(_IMAGES):
        raise DataError(
            f"{table.place(0)} has pictures in column {_IMAGES}, and data.images is not set",
            where=f"column {_IMAGES}",
            fix="data.images: {} for a model that reads pictures, or remove the column",
        )


_IMAGES = "images"
"""The usual name of the column, which is the default of data.images.field."""


def refuse_odd_sources(table: Table) -> None:
    """Refuse a `data_source` that is no text: metrics are named by it. A row may have none.

    Raises:
        DataError: names the first such row.
    """
    if _SOURCE not in table[0]:
        return
    for index, (name,) in enumerate(columns_or_null(table, (_SOURCE,))):
        if name is not None and not isinstance(name, str):
            raise DataError(
                f"{table.place(index)}: {_SOURCE} is {json_kind(name)}, not text",
                where=f"column {_SOURCE}",
                fix="write the name of the row's data set, or remove the column",
            )


_SOURCE = "data_source"


def too_long(long: Sequence[tuple[int, int]], table: Table, name: str, limit: int, where: str) -> DataError:
    """
    Args:
        long: (row, tokens) of every prompt above the limit.
    """
    row, longest = max(long, key=lambda entry: entry[1])
    return DataError(
        f"{len(long)} of {counted(len(table), 'prompt')} in {name} are longer than rollout.max_prompt_tokens "
        f"= {limit}; the longest, {table.place(row)}, has {counted(longest, 'token')}",
        where=where,
        fix=f"rollout.max_prompt_tokens={longest}, or drop those rows",
    )
