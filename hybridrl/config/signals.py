"""What an algorithm learns from besides rewards: what an environment writes, and a teacher with a hint."""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt, model_validator

from hybridrl.config.section import Section


class ObservationsConfig(Section):
    """Training on what the environment writes: the policy learns to predict it (ECHO)."""

    coefficient: NonNegativeFloat = 0.0
    """Weight of the mean of -log p over the tokens that the environment wrote between two answers; 0: they
    are read only."""

    over: Literal["answer", "token"] = "answer"
    """answer: the mean over each trajectory's tokens, then over trajectories; token: over all tokens of the
    minibatch."""


class HintConfig(Section):
    """What the teacher reads before the prompt, and the policy does not: a demonstration from the data."""

    field: str
    """Column of a row that has it, as text; solution.text is a field inside a column."""

    text: str = "Here is an example of an expert response:\n<demonstration>\n{hint}\n</demonstration>"
    """Message of the system that carries it, in place of {hint}."""

    max_tokens: PositiveInt = 1024
    """A longer one is refused before the run starts."""

    @model_validator(mode="after")
    def _says_it(self) -> "HintConfig":
        if "{hint}" not in self.text:
            raise ValueError("text has no {hint}: the teacher would not read it")
        return self
