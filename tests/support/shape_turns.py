"""An environment that shows a picture in every turn."""

from typing import Any

from hybridrl.data.tasks.shapes import shapes
from hybridrl.environments.base import Observation, Turn


class Shapes:
    """The prompt asks about its picture; then follow further pictures and questions, one in each turn."""

    def __init__(self, *, rounds: int = 3) -> None:
        self._rounds = rounds

    def reset(self, row: dict[str, Any], seed: int) -> Observation:
        self._answer, self._left = row["answer"], shapes(seed % 2**31, size=self._rounds - 1)
        return Observation()

    def step(self, turn: Turn) -> Observation:
        reward = float(turn.text == self._answer)
        if not self._left:
            return Observation(reward=reward, done=True)
        row = self._left.pop()
        self._answer, question = row["answer"], row["prompt"].removeprefix("<image>")
        parts = [{"type": "image", "image": row["images"][0]["bytes"]}, {"type": "text", "text": question}]
        return Observation([{"role": "user", "content": parts}], reward=reward)
