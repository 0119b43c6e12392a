"""Sizes of the batch of a policy update, or of an SFT or reward-model step."""

from dataclasses import dataclass
from typing import Any

from hybridrl.config.rules.turns import most_turns
from hybridrl.config.schema import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Numbers and lengths in one policy update."""

    prompts: int
    samples: int
    """Responses per prompt."""

    prompt_tokens: int
    """Longest prompt in tokens."""

    response_tokens: int
    """Longest response in tokens."""

    mean_prompt: float
    mean_response: float
    optimizer_steps: int
    epochs: int
    share_prompts: bool = False
    """Whether training computes each prompt once."""

    turns: int = 1
    """Most answers in an episode; 1 without an environment."""

    turn_tokens: int = 0
    """Most tokens of one answer in an episode; 0 without an environment."""

    picture_tokens: int = 0
    """Most tokens of a picture; 0: prompts are text."""

    turn_s: float = 0.0
    """Longest time that an environment may take to answer a turn."""

    @classmethod
    def of(cls, cfg: Config, mean_response: float | None) -> "Batch":
        """The batch of a policy update.

        Args:
            mean_response: mean response length in tokens; None: half of the longest.
        """
        rollout = cfg.rollout
        response = rollout.longest_tokens - rollout.max_prompt_tokens
        return cls(
            prompts=cfg.batch.prompts_per_step,
            samples=cfg.algorithm.samples_per_prompt,
            prompt_tokens=rollout.max_prompt_tokens,
            response_tokens=response,
            mean_prompt=rollout.max_prompt_tokens / 2,
            mean_response=response / 2 if mean_response is None else mean_response,
            optimizer_steps=cfg.batch.optimizer_steps,
            epochs=cfg.batch.epochs,
            share_prompts=cfg.actor.share_prompts,
            picture_tokens=cfg.data.images.max_tokens if cfg.data.images else 0,
            **_episodes(cfg),
        )

    @classmethod
    def of_examples(cls, examples: int, answers: int, longest: int, mean_length: float | None) -> "Batch":
        """The batch of an SFT or reward-model step.

        Prompts are counted as part of the answers, so the loss is assumed to be on every token.
        """
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
    def computed_length(self) -> float:
        """Mean tokens that training computes for a trajectory: with shared prompts, its part of the prompt,
        the prompt's last token, and the answer."""
        if not self.share_prompts:
            return self.mean_length
        return self.mean_response + 1 + max(0.0, self.mean_prompt - 1) / self.samples

    @property
    def trained_share(self) -> float:
        """Share of trained tokens in a microbatch of the longest trajectories."""
        return self.response_tokens / self.longest

    @property
    def trajectories_per_minibatch(self) -> float:
        return self.trajectories * self.epochs / self.optimizer_steps


def _episodes(cfg: Config) -> dict[str, Any]:
    """The fields about episodes of several turns."""
    if not cfg.has_episodes:
        return {}
    turns, answer = most_turns(cfg), cfg.rollout.max_response_tokens
    seconds = cfg.environment.step_timeout_s if cfg.environment else 0.0
    return {"turns": turns, "turn_tokens": answer, "turn_s": seconds}
