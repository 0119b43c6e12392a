"""Examples of a run: an endless stream, in a new order at each epoch, of rows that were all checked first."""

from collections.abc import Sequence

from hybridrl.config.schema import SourceConfig
from hybridrl.data.examples import Example, ExampleFormat
from hybridrl.data.order import EpochOrder, Stream
from hybridrl.data.source import open_rows
from hybridrl.data.tables import Table
from hybridrl.errors import DataError
from hybridrl.wording import counted

_BATCH = 512
"""Rows tokenised together."""


class TableExamples(Stream[Example]):
    def __init__(self, table: Table, form: ExampleFormat, order: EpochOrder, *, max_tokens: int) -> None:
        """
        Args:
            max_tokens: a longer example is an error when it is taken.
        """
        super().__init__(table, order)
        self._form, self._max_tokens = form, max_tokens

    def check(self) -> None:
        """Check every row.

        Raises:
            DataError: a row is no example, or is too long.
        """
        for at in range(0, len(self), _BATCH):
            self._read(range(at, min(at + _BATCH, len(self))))

    def first(self) -> Example:
        """The example of the first row; the position does not change."""
        return self._read([0])[0]

    def _read(self, indices: Sequence[int]) -> list[Example]:
        found: list[Example] = []
        for at in range(0, len(indices), _BATCH):
            part = indices[at : at + _BATCH]
            places = [self.rows.place(i) for i in part]
            found += self._form.encode([self.rows[i] for i in part], places)
        for i, example in zip(indices, found, strict=True):
            self._refuse_long(i, example)
        return found

    def _refuse_long(self, index: int, example: Example) -> None:
        if example.num_tokens > self._max_tokens:
            raise DataError(
                f"{self.rows.place(index)} has {counted(example.num_tokens, 'token')}, more than "
                f"actor.microbatch_tokens = {self._max_tokens}; an example is never split",
                fix=f"actor.microbatch_tokens={example.num_tokens}, or drop the row",
            )


def load_examples(
    source: SourceConfig,
    form: ExampleFormat,
    *,
    split: str,
    seed: int,
    shuffle: bool,
    max_tokens: int,
    where: str,
) -> TableExamples:
    """Open a file or make a task's rows, and refuse at once whatever is wrong with any of them.

    Args:
        split: "train" or "heldout"; a task makes other rows for each.
        where: the config place, named in errors.

    Raises:
        ConfigError: no such task, or options that it does not take.
        DataError: no such file, no rows, a row that is no example, or one that is too long.
    """
    _, table = open_rows(source, split=split, seed=seed, where=where)
    order = EpochOrder(len(table), seed=seed, shuffle=shuffle, split=split)
    examples = TableExamples(table, form, order, max_tokens=max_tokens)
    try:
        examples.check()
    except DataError as error:
        raise DataError(error.what, where=error.where or where, fix=error.fix) from error
    return examples
