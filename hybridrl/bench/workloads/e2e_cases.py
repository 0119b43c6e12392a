"""The runs of `hybridrl bench e2e`, as sections of a config; peers take prompts, sizes and dtype from them.

A peer is given the prompts of each step as the run takes them.
"""

from typing import Any

from hybridrl.bench.base import Case

QUICKSTART: dict[str, Any] = {
    "model": {"path": "runs/models/arithmetic-{seed}", "make": "hybridrl.models.tiny:qwen3_arithmetic"},
    "data": {"train": {"task": "last_digit", "part": "train"}, "chat_template": "none"},
    "reward": "exact_match",
    "algorithm": {
        "preset": "grpo",
        "loss": {"name": "ppo_clip", "clip_high": 0.5},
        "samples_per_prompt": 16,
        "entropy_coefficient": 0.05,
    },
    "batch": {"prompts_per_step": 64, "minibatch_prompts": 32, "epochs": 2},
    "actor": {
        "parallel": {"tp": 2},
        "optimizer": {"lr": 1.0e-3, "schedule": "linear", "warmup_steps": 10},
    },
    "rollout": {"max_prompt_tokens": 8, "max_response_tokens": 2},
}
"""configs/quickstart.yaml without its evaluation."""

_SMOLLM2 = {"path": "runs/models/smollm2-135m", "make": "hybridrl.models.smollm2:make"}

_SPREAD = {"name": "hybridrl.bench.peers.reward:spread"}
"""A reward that leaves no group flat: what is equal for all answers is not trained on, and costs nothing."""


def _grpo(train: dict[str, Any], *, prompts: int, samples: int, response: int, **sections: Any) -> Any:
    """One optimizer step of plain GRPO on SmolLM2, at a learning rate that keeps answers as they are."""
    return {
        "model": _SMOLLM2,
        "data": {"train": {"task": "reasoning_gym", "size": prompts, **train}},
        "reward": _SPREAD,
        "algorithm": {"preset": "grpo", "samples_per_prompt": samples},
        "batch": {"prompts_per_step": prompts, "minibatch_prompts": prompts},
        "actor": {
            "parallel": {"dp": 2},
            "microbatch_tokens": 2048,
            "optimizer": {"lr": 1.0e-7},
        },
        "rollout": {"max_prompt_tokens": 256, "max_response_tokens": response, "temperature": 1.0},
        **sections,
    }


_SUMS = {
    "dataset": "basic_arithmetic",
    "config": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
}
_LONG_TAIL = {
    "dataset": ["basic_arithmetic", "gsm_symbolic"],
    "config": {"basic_arithmetic": _SUMS["config"]},
}

_ON_GPUS: dict[str, Any] = {
    "model": {"path": "Qwen/Qwen2.5-7B-Instruct"},
    "data": {"train": {"task": "reasoning_gym", "dataset": "gsm_symbolic", "size": 128}},
    "reward": _SPREAD,
    "algorithm": {"preset": "grpo", "samples_per_prompt": 8},
    "batch": {"prompts_per_step": 128, "minibatch_prompts": 128},
    "actor": {"parallel": {"tp": 2}, "microbatch_tokens": 16384, "optimizer": {"lr": 1.0e-7}},
    "rollout": {
        "parallel": {"tp": 2},
        "max_prompt_tokens": 512,
        "max_response_tokens": 2048,
        "temperature": 1.0,
        "memory_fraction": 0.6,
    },
    "cluster": {"nodes": 1, "gpus_per_node": 8},
}

CASES = [
    Case(name="quickstart", config=QUICKSTART, warm_up=5, repeats=40),
    Case(name="smollm2", config=_grpo(_SUMS, prompts=4, samples=8, response=64), warm_up=1, repeats=4),
    Case(
        name="smollm2 long tail",
        config=_grpo(_LONG_TAIL, prompts=4, samples=4, response=256),
        warm_up=1,
        repeats=3,
    ),
    Case(name="qwen2.5-7b 8 GPUs", config=_ON_GPUS, warm_up=2, repeats=8, gpus=8),
]

SMOKE = [
    Case(
        name="smoke",
        config={
            **QUICKSTART,
            "reward": _SPREAD,
            "algorithm": {"preset": "grpo", "samples_per_prompt": 4},
            "batch": {"prompts_per_step": 4, "minibatch_prompts": 4},
            "actor": {"parallel": {"tp": 1, "dp": 1}, "optimizer": {"lr": 1.0e-7}},
        },
        warm_up=1,
        repeats=1,
    )
]
