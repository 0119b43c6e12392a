"""The order in which the rows of a data set are taken: endless, and it can be put back to any position."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hybridrl.errors import CheckpointError


class EpochOrder:
    """A new order at each epoch, which depends on seed and epoch alone: resumes are exact."""

    def __init__(self, num_rows: int, *, seed: int, shuffle: bool, split: str) -> None:
        """
        Args:
            shuffle: without, the rows come in their own order.
            split: of the data, for messages.
        """
        self._num_rows, self._seed, self._shuffle, self._split = num_rows, seed, shuffle, split
        self.epoch, self.position = 0, 0
        self._order_N = self._order()

    def take(self, count: int) -> list[int]:
        """The next rows; goes on into the next epoch where this one ends."""
        picked: list[int] = []
        while len(picked) < count:
            more = self._order_N[self.position : self.position + count - len(picked)]
            picked += more.tolist()
            self.position += len(more)
            if self.position == self._num_rows:
                self.epoch, self.position = self.epoch + 1, 0
                self._order_N = self._order()
        return picked

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where the order of the same data was.

        Raises:
            CheckpointError: there were other rows, another seed or another order.
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
        if not self._shuffle:
            return np.arange(self._num_rows)
        return np.random.default_rng([self._seed, self.epoch]).permutation(self._num_rows)
