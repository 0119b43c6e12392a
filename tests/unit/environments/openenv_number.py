"""A real OpenEnv server for tests, on the port that its argument names: guess a number from 0 to 9."""

import random
import sys
from typing import Any

import uvicorn
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State


class Guess(Action):
    message: str


class Hint(Observation):
    text: str


class Number(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, **rest: Any) -> Hint:
        self._number = random.Random(seed).randrange(10)
        return Hint(text="Guess.")

    def step(self, action: Guess, **rest: Any) -> Hint:
        if not action.message.isdecimal():
            raise ValueError(f"{action.message!r} is no number")
        guess = int(action.message)
        right = guess == self._number
        return Hint(
            text="" if right else "higher" if guess < self._number else "lower",
            reward=float(right),
            done=right,
        )

    @property
    def state(self) -> State:
        return State()


if __name__ == "__main__":
    app = create_fastapi_app(Number, Guess, Hint, max_concurrent_envs=200)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
