"""The order in which the rows of a data set are taken: it is endless and can be reset to any position."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from hybridrl.data.tables import Table
from hybridrl.errors import CheckpointError

Item = TypeVar("Item")


class EpochOrder:
    """A new order at each epoch, which depends on seed and epoch alone: resumes are exact."""

    def __init__(self, num_rows: int, *, seed: int, shuffle: bool, split: str) -> None:
        """
        Args:
            shuffle: False keeps the rows in file order.
            split: name of the split, for messages.
        """
        self._num_rows, self._seed, self._shuffle, self._split = num_rows, seed, shuffle, split
        self.epoch, self.position = 0, 0
        self._order_N = self._order()

    def take(self, count: int) -> list[int]:
        """Indices of the next rows; at the end of an epoch the next one begins."""
        picked: list[int] = []
        while len(picked) < count:
            more = self._order_N[self.position : self.position + count - len(picked)]
            picked += more.tolist()
            self.position += len(more)
            if self.position == self._num_rows:
                self.epoch, self.position = self.epoch + 1, 0
                self._order_N = self._order()
        return picked

    @property
    def num_taken(self) -> int:
        """Rows taken since the first epoch began."""
        return self.epoch * self._num_rows + self.position

    def at(self, positions: Sequence[int]) -> list[int]:
        """Indices of the rows that `take` returned, or will return, at these positions; nothing is taken."""
        orders = {epoch: self._order_of(epoch) for epoch in {at // self._num_rows for at in positions}}
        return [int(orders[at // self._num_rows][at % self._num_rows]) for at in positions]

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position at which an order of the same data was saved.

        Raises:
            CheckpointError: the saved order was of other rows, another seed or without this shuffling.
        """
        for key, here in self._identity().items():
            if state[key] != here:
                raise CheckpointError(
                    f"the {self._split} data has {key} = {here}, in the checkpoint it is {state[key]}",
                    where="the order of prompts cannot be continued",
                    fix="resume with the data and seed of the run, or start another run",
                )
        self.epoch, self.position = state["epoch"], state["position"]
        self._order_N = self._order()

    def _identity(self) -> dict[str, Any]:
        return {"num_rows": self._num_rows, "seed": self._seed, "shuffle": self._shuffle}

    def _order(self) -> np.ndarray:
        return self._order_of(self.epoch)

    def _order_of(self, epoch: int) -> np.ndarray:
        if not self._shuffle:
            return np.arange(self._num_rows)
        return np.random.default_rng([self._seed, epoch]).permutation(self._num_rows)


class Stream(ABC, Generic[Item]):
    """The items that the rows of a table describe, in an order."""

    def __init__(self, table: Table, order: EpochOrder) -> None:
        self.rows, self.order = table, order

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, count: int) -> list[Item]:
        """The next items; at the end of an epoch the next one begins."""
        return self._read(self.order.take(count))

    @property
    def position(self) -> int:
        """Number of items taken since the beginning."""
        return self.order.num_taken

    def at(self, indices: Sequence[int]) -> list[Item]:
        """The items of these indices in the stream; the position does not change."""
        return self._read(self.order.at(indices))

    def all(self) -> list[Item]:
        """Every item once, in the order of the rows; the position does not change."""
        return self._read(range(len(self)))

    def state_dict(self) -> dict[str, Any]:
        return self.order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position at which a stream of the same data was saved.

        Raises:
            CheckpointError: that stream had other rows, another seed or another order.
        """
        self.order.load_state_dict(state)

    @abstractmethod
    def _read(self, indices: Sequence[int]) -> list[Item]:
        """
        Raises:
            DataError: a row is not what it should be, or too long.
        """
