"""How answers are sampled, and from which seed: a function of the run's seed and the step, so a resumed run
repeats it."""

from hybridrl.config.schema import Config
from hybridrl.types import Sampling

_STEP_STRIDE = 1_000_003
"""A prime above any number of requests of a step, so that seeds of neighbouring steps do not overlap."""


def train_sampling(cfg: Config, step: int) -> Sampling:
    """Sampling of the prompts of a step; request i of the step uses seed + i."""
    return Sampling(
        num_samples=cfg.algorithm.samples_per_prompt,
        max_response_tokens=cfg.rollout.max_response_tokens,
        temperature=cfg.rollout.temperature,
        seed=_seed(cfg.run.seed, 2 * step),
    )


def greedy_sampling(cfg: Config) -> Sampling:
    """One greedy answer to each prompt, as a baseline."""
    longest = cfg.rollout.max_response_tokens
    return Sampling(num_samples=1, max_response_tokens=longest, temperature=0.0, seed=0)


def heldout_sampling(cfg: Config, step: int) -> Sampling:
    """Sampling of an evaluation; its seeds are not those of any training step."""
    return Sampling(
        num_samples=cfg.evaluate.samples_per_prompt,
        max_response_tokens=cfg.rollout.max_response_tokens,
        temperature=cfg.evaluate.temperature,
        seed=_seed(cfg.run.seed, 2 * step + 1),
    )


def _seed(run_seed: int, stream: int) -> int:
    return (run_seed * 7919 + stream) * _STEP_STRIDE % 2**31
