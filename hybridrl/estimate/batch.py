"""The batch of a policy update, or of a step on examples: how many of what, and how long."""

from dataclasses import dataclass

from hybridrl.config.schema import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Of one policy update."""

    prompts: int
    samples: int
    """Answers to each prompt."""

    prompt_tokens: int
    """At most."""

    response_tokens: int
    """At most."""

    mean_prompt: float
    mean_response: float
    optimizer_steps: int
    epochs: int

    @classmethod
    def of(cls, cfg: Config, mean_response: float | None) -> "Batch":
        """
        Args:
            mean_response: tokens of an answer. None: half of what is allowed.
        """
        rollout = cfg.rollout
        return cls(
            prompts=cfg.batch.prompts_per_step,
            samples=cfg.algorithm.samples_per_prompt,
            prompt_tokens=rollout.max_prompt_tokens,
            response_tokens=rollout.max_response_tokens,
            mean_prompt=rollout.max_prompt_tokens / 2,
            mean_response=rollout.max_response_tokens / 2 if mean_response is None else mean_response,
            optimizer_steps=cfg.batch.optimizer_steps,
            epochs=cfg.batch.epochs,
        )

    @classmethod
    def of_examples(cls, examples: int, answers: int, longest: int, mean_length: float | None) -> "Batch":
        """Prompts are short against answers: the loss is taken to be of every token."""
        return cls(
            prompts=examples,
            samples=answers,
            prompt_tokens=0,
            response_tokens=longest,
            mean_prompt=0.0,
            mean_response=longest / 2 if mean_length is None else mean_length,
            optimizer_steps=1,
            epochs=1,
        )

    @property
    def trajectories(self) -> int:
        return self.prompts * self.samples

    @property
    def longest(self) -> int:
        return self.prompt_tokens + self.response_tokens

    @property
    def mean_length(self) -> float:
        return self.mean_prompt + self.mean_response

    @property
    def trained_share(self) -> float:
        """Of the tokens of a microbatch of the longest trajectories."""
        return self.response_tokens / self.longest

    @property
    def trajectories_per_minibatch(self) -> float:
        return self.trajectories * self.epochs / self.optimizer_steps
