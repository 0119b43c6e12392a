"""Named algorithms as rows of choices: what `algorithm.preset` sets. Keys that a config sets itself win.

A row is what its paper says about estimator, loss, aggregation and KL; sizes, learning rate and sampling stay
with the run.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridrl.config.compatibility import COMPATIBILITY
from hybridrl.config.frameworks.absent import ABSENT


@dataclass(frozen=True, slots=True)
class Preset:
    about: str
    """One line: the idea, its source, and what of it the row leaves out."""

    algorithm: Mapping[str, Any]
    """Keys of the section `algorithm`."""

    samples_per_prompt: int = 8
    """Answers to a prompt in the config that `init` writes; 1 where the paper's baseline is not the group."""

    has_teacher: bool = False
    """Whether a config with this preset has to set algorithm.teacher."""


_CLIP = {"name": "ppo_clip", "clip_low": 0.2, "clip_high": 0.2}

_PAPERS: Mapping[str, Preset] = {
    "grpo": Preset(
        "group mean and std as baseline and scale, arXiv:2402.03300",
        {
            "estimator": {"name": "grpo"},
            "loss": _CLIP,
            "aggregate": "seq_mean_token_mean",
            "kl": {"estimator": "k3"},
        },
    ),
    "dr_grpo": Preset(
        "GRPO without the std and without the length bias, arXiv:2503.20783",
        {"estimator": {"name": "dr_grpo"}, "loss": _CLIP, "aggregate": "seq_mean_token_sum_norm"},
    ),
    "rloo": Preset(
        "the other answers' mean as baseline, arXiv:2402.14740; sums over tokens are divided by a constant",
        {"estimator": {"name": "rloo"}, "loss": _CLIP, "aggregate": "seq_mean_token_sum_norm"},
    ),
    "reinforce_plus_plus": Preset(
        "returns whitened over the batch, KL in the reward, arXiv:2501.03262",
        {
            "estimator": {"name": "reinforce_plus_plus"},
            "loss": _CLIP,
            "aggregate": "token_mean",
            "kl": {"estimator": "k1", "in": "reward"},
        },
        samples_per_prompt=1,
    ),
    "reinforce_plus_plus_baseline": Preset(
        "group mean as baseline, then whitened over the batch, KL (k2) in the loss, arXiv:2501.03262",
        {
            "estimator": {"name": "reinforce_plus_plus_baseline"},
            "loss": _CLIP,
            "aggregate": "token_mean",
            "kl": {"estimator": "k2", "in": "loss"},
        },
    ),
    "echo": Preset(
        "GRPO that also learns to predict what the environment writes, arXiv:2605.24517",
        {
            "estimator": {"name": "grpo"},
            "loss": _CLIP,
            "aggregate": "token_mean",
            "observations": {"coefficient": 0.05, "over": "answer"},
        },
    ),
    "dapo": Preset(
        "higher upper clip, token mean, dynamic sampling, arXiv:2503.14476; its overlong penalty: shaping "
        "[{name: overlong, limit: ..., margin: ...}]",
        {
            "estimator": {"name": "grpo"},
            "loss": _CLIP | {"clip_high": 0.28},
            "aggregate": "token_mean",
            "dynamic_sampling": {},
        },
    ),
    "opo": Preset(
        "length-weighted mean as baseline, exactly on-policy, no clip, arXiv:2505.23585",
        {"estimator": {"name": "opo"}, "loss": {"name": "reinforce"}, "aggregate": "seq_mean_token_sum"},
    ),
    "gpg": Preset(
        "centred rewards scaled to the groups that teach something, no clip, arXiv:2504.02546",
        {"estimator": {"name": "gpg"}, "loss": {"name": "reinforce"}, "aggregate": "token_mean"},
    ),
    "lite_ppo": Preset(
        "group mean, batch std and token mean, arXiv:2508.08221",
        {"estimator": {"name": "lite_ppo"}, "loss": _CLIP, "aggregate": "token_mean"},
    ),
    "max_rl": Preset(
        "centred rewards over the group's mean, arXiv:2602.02710; rewards must not be negative",
        {"estimator": {"name": "max_rl"}, "loss": _CLIP, "aggregate": "token_mean"},
    ),
    "gdpo": Preset(
        "every part of the reward normalised in its group, then whitened over answers, arXiv:2601.05242",
        {"estimator": {"name": "gdpo"}, "loss": _CLIP, "aggregate": "token_mean"},
    ),
    "grpo_passk": Preset(
        "only the best answer of a group is reinforced, arXiv:2503.19595",
        {"estimator": {"name": "grpo_passk"}, "loss": _CLIP, "aggregate": "token_mean"},
    ),
    "gspo": Preset(
        "one importance ratio for the whole answer, arXiv:2507.18071",
        {
            "estimator": {"name": "grpo"},
            "loss": {"name": "gspo", "clip_low": 3e-4, "clip_high": 4e-4},
            "aggregate": "seq_mean_token_mean",
        },
    ),
    "luspo": Preset(
        "GSPO without the division by length, arXiv:2602.05261",
        {
            "estimator": {"name": "grpo"},
            "loss": {"name": "luspo", "clip_low": 3e-4, "clip_high": 4e-4},
            "aggregate": "seq_mean_token_sum",
        },
    ),
    "vespo": Preset(
        "a smooth weight of the whole answer's importance ratio, arXiv:2602.10693",
        {"estimator": {"name": "grpo"}, "loss": {"name": "vespo"}, "aggregate": "token_mean"},
    ),
    "gmpo": Preset(
        "geometric mean of the clipped token ratios, arXiv:2507.20673",
        {"estimator": {"name": "grpo"}, "loss": {"name": "gmpo"}, "aggregate": "seq_mean_token_mean"},
    ),
    "sapo": Preset(
        "a smooth gate in place of the clip, arXiv:2511.20347",
        {"estimator": {"name": "grpo"}, "loss": {"name": "sapo"}, "aggregate": "seq_mean_token_mean"},
    ),
    "cispo": Preset(
        "clipped importance weight, every token keeps its gradient, arXiv:2506.13585",
        {"estimator": {"name": "grpo"}, "loss": {"name": "cispo"}, "aggregate": "token_mean"},
    ),
    "dppo": Preset(
        "trust region on the change of a token's probability since it was sampled, arXiv:2602.04879",
        {
            "estimator": {"name": "grpo"},
            "loss": {"name": "dppo_tv"},
            "aggregate": "token_mean",
            "correction": ["bypass"],
        },
    ),
    "dppo_kl": Preset(
        "trust region on the divergence of a token since it was sampled, arXiv:2602.04879",
        {
            "estimator": {"name": "grpo"},
            "loss": {"name": "dppo_kl", "delta_low": 0.05, "delta_high": 0.05},
            "aggregate": "token_mean",
            "correction": ["bypass"],
        },
    ),
    "ipo": Preset(
        "trust region on probabilities that is the same in both directions, prime-rl",
        {
            "estimator": {"name": "dr_grpo"},
            "loss": {"name": "ipo"},
            "aggregate": "token_mean",
            "correction": ["bypass"],
        },
    ),
    "glm5": Preset(
        "importance weights since sampling, 0 outside a range, arXiv:2602.15763",
        {
            "estimator": {"name": "grpo"},
            "loss": {"name": "cispo", "clip_low": 0.2, "clip_high": 0.2, "outside": "zero"},
            "aggregate": "token_mean",
            "correction": ["bypass"],
        },
    ),
    "flash_reinforce": Preset(
        "one answer per prompt, importance weights since sampling, answers that moved are rejected, "
        "Hu et al. 2026",
        {
            "estimator": {"name": "group_norm", "mean": "batch", "std": "none"},
            "loss": {"name": "flash_reinforce"},
            "aggregate": "seq_mean_token_mean",
        },
        samples_per_prompt=1,
    ),
    "reinforce": Preset(
        "the reward itself as advantage, Williams 1992",
        {
            "estimator": {"name": "group_norm", "mean": "none", "std": "none"},
            "loss": {"name": "reinforce"},
            "aggregate": "seq_mean_token_sum",
        },
        samples_per_prompt=1,
    ),
    "optimal_token_baseline": Preset(
        "the baseline of least variance at every position, arXiv:2602.07078",
        {"estimator": {"name": "optimal_token_baseline"}, "loss": _CLIP, "aggregate": "token_mean"},
    ),
    "hierarchical_grpo": Preset(
        "peers of the same role and episode as baseline, prime-rl",
        {"estimator": {"name": "hierarchical_grpo"}, "loss": _CLIP, "aggregate": "token_mean"},
    ),
    "clip_cov": Preset(
        "a few tokens of high covariance get no gradient, arXiv:2505.22617",
        {"estimator": {"name": "grpo"}, "loss": {"name": "clip_cov"}, "aggregate": "token_mean"},
    ),
    "kl_cov": Preset(
        "tokens of high covariance pay for every move, arXiv:2505.22617",
        {"estimator": {"name": "grpo"}, "loss": {"name": "kl_cov"}, "aggregate": "token_mean"},
    ),
    "aspo": Preset(
        "inverse ratio on good tokens, arXiv:2510.06062",
        {"estimator": {"name": "grpo"}, "loss": {"name": "aspo"}, "aggregate": "token_mean"},
    ),
    "topr": Preset(
        "truncated importance weight of the whole answer on bad answers only, arXiv:2503.14286",
        {"estimator": {"name": "dr_grpo"}, "loss": {"name": "topr"}, "aggregate": "seq_mean_token_sum"},
    ),
    "m2po": Preset(
        "stalest tokens left out, no clip, arXiv:2510.01161",
        {"estimator": {"name": "grpo"}, "loss": {"name": "m2po"}, "aggregate": "token_mean"},
    ),
    "kimi_k15": Preset(
        "mirror descent with a group-mean baseline, arXiv:2501.12599; no length reward",
        {
            "estimator": {"name": "dr_grpo"},
            "loss": {"name": "kimi_k15", "tau": 0.1},
            "aggregate": "seq_mean_token_sum",
        },
    ),
    "copg": Preset(
        "contrastive policy gradient on pairs of answers, arXiv:2406.19185",
        {"estimator": {"name": "rloo"}, "loss": {"name": "copg"}, "aggregate": "seq_mean_token_sum"},
    ),
    "intellect2": Preset(
        "two-sided clip for asynchronous data, arXiv:2505.07291",
        {"estimator": {"name": "grpo"}, "loss": {"name": "two_sided"}, "aggregate": "token_mean"},
    ),
    "areal": Preset(
        "decoupled PPO for asynchronous data, arXiv:2505.24298",
        {"estimator": {"name": "grpo"}, "loss": {"name": "decoupled_ppo"}, "aggregate": "token_mean"},
    ),
    "ppo": Preset(
        "GAE with a value function, arXiv:1707.06347",
        {"estimator": {"name": "gae"}, "loss": _CLIP, "aggregate": "token_mean"},
        samples_per_prompt=1,
    ),
    "vapo": Preset(
        "length-adaptive GAE, higher upper clip, likelihood loss on solved answers, arXiv:2504.05118",
        {
            "estimator": {"name": "gae", "value_lambda": 1.0, "adaptive_lambda": 0.05},
            "loss": {"name": "vapo"},
            "aggregate": "token_mean",
        },
        samples_per_prompt=1,
    ),
    "remax": Preset(
        "greedy answer as baseline, arXiv:2310.10505",
        {"estimator": {"name": "remax"}, "loss": {"name": "reinforce"}, "aggregate": "seq_mean_token_sum"},
        samples_per_prompt=1,
    ),
    "prime": Preset(
        "implicit process rewards and the outcome, arXiv:2502.01456; options in algorithm.process_model",
        {"estimator": {"name": "prime"}, "loss": _CLIP, "aggregate": "token_mean"},
    ),
    "a_star_po": Preset(
        "regression onto the optimal advantage, arXiv:2505.20686; v_star is computed before the run",
        {
            "estimator": {"name": "a_star_po"},
            "loss": {"name": "a_star_po", "beta": 1e-3},
            "aggregate": "seq_mean_token_sum",
        },
    ),
    "gigpo": Preset(
        "groups of answers and of equal environment states, arXiv:2505.10978",
        {"estimator": {"name": "gigpo"}, "loss": _CLIP, "aggregate": "token_mean"},
    ),
    "spiral": Preset(
        "running baseline for every role of a game, arXiv:2506.24119",
        {"estimator": {"name": "rae"}, "loss": {"name": "reinforce"}, "aggregate": "seq_mean_token_sum"},
    ),
    "distillation": Preset(
        "a teacher's log-probabilities as advantages, arXiv:2601.02780",
        {"estimator": {"name": "distillation"}, "loss": {"name": "reinforce"}, "aggregate": "token_mean"},
        has_teacher=True,
    ),
    "opsd": Preset(
        "the policy with a demonstration in its prompt is its own teacher, arXiv:2601.19897; column "
        "demonstration of the data, or algorithm.hint.field",
        {
            "estimator": {"name": "distillation"},
            "loss": {"name": "reinforce"},
            "aggregate": "token_mean",
            "hint": {"field": "demonstration"},
        },
        samples_per_prompt=1,
    ),
    "opsd_jsd": Preset(
        "opsd by the divergence of the distributions at each token, arXiv:2601.18734",
        {
            "estimator": {"name": "distillation"},
            "loss": {"name": "teacher_divergence"},
            "aggregate": "token_mean",
            "hint": {"field": "demonstration"},
        },
        samples_per_prompt=1,
    ),
    "gkd": Preset(
        "a teacher's distribution at each token of the policy's own answers, arXiv:2306.13649",
        {
            "estimator": {"name": "distillation"},
            "loss": {"name": "teacher_divergence"},
            "aggregate": "token_mean",
        },
        has_teacher=True,
        samples_per_prompt=1,
    ),
}


def _frameworks() -> dict[str, Preset]:
    """The numerics of other frameworks, under names like verl/grpo."""
    found = {}
    for algorithm, rows in COMPATIBILITY.items():
        paper = _PAPERS[algorithm]
        number = re.search(r"arXiv:[0-9.]+[0-9]", paper.about)
        source = number[0] if number else paper.about.rpartition(", ")[2]
        for framework, row in rows.items():
            found[f"{framework}/{algorithm}"] = Preset(
                f"{row.about}, {source}",
                row.algorithm,
                row.samples_per_prompt or paper.samples_per_prompt,
                paper.has_teacher,
            )
    return found


PRESETS: Mapping[str, Preset] = {**_PAPERS, **_frameworks()}


def instead_of(name: str, count: int = 1) -> str:
    """What to use in place of a name that is no preset.

    Args:
        count: number of similar names at most.
    """
    if name in ABSENT:
        return ABSENT[name]
    near = difflib.get_close_matches(name, PRESETS, n=count, cutoff=0.5)
    return f"use {' or '.join(near)}" if near else "hybridrl algo list shows them"
