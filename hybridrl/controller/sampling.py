"""How answers are sampled, and from which seed: a function of the run's seed and the prompt, so a resumed run
repeats it."""

from hybridrl.config.schema import Config
from hybridrl.seeds import group_seed
from hybridrl.types import GroupTask, Prompt, Sampling

_HELDOUT = 2**62
"""Index of the first evaluation's seed; no stream has as many prompts."""


def group_task(cfg: Config, index: int, prompt: Prompt, *, greedy: bool) -> GroupTask:
    """The task of training prompt `index`.

    Args:
        greedy: answer once greedily too, as a baseline.
    """
    longest = cfg.rollout.max_response_tokens
    return GroupTask(
        index=index,
        prompt=prompt,
        sampling=Sampling(
            num_samples=cfg.algorithm.samples_per_prompt,
            max_response_tokens=longest,
            temperature=cfg.rollout.temperature,
            seed=group_seed(cfg.run.seed, index),
        ),
        greedy=Sampling(num_samples=1, max_response_tokens=longest, temperature=0.0, seed=0)
        if greedy
        else None,
    )


def heldout_sampling(cfg: Config, step: int) -> Sampling:
    """Sampling of an evaluation; its seeds are not those of any training prompt."""
    return Sampling(
        num_samples=cfg.evaluate.samples_per_prompt,
        max_response_tokens=cfg.rollout.max_response_tokens,
        temperature=cfg.evaluate.temperature,
        top_p=cfg.evaluate.top_p,
        top_k=cfg.evaluate.top_k or -1,
        seed=group_seed(cfg.run.seed, _HELDOUT + step) % 2**31,
    )
