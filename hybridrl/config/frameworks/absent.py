"""What other frameworks name and no row reproduces, with the reason and what comes nearest."""

from collections.abc import Mapping

_MORE_THAN_ONE = "needs the teacher's probabilities of more than the sampled token"

ABSENT: Mapping[str, str] = {
    "verl/dro": "verl has no default of dro_beta: algorithm.loss: {name: dro, beta: ..., over: token}",
    "verl/forward_kl_topk": f"it {_MORE_THAN_ONE}; verl/distillation is the policy gradient of k1",
    "trl/bnpo": "it divides by the tokens of a microbatch; trl/grpo divides by those of the minibatch",
    "trl/gkd": f"it {_MORE_THAN_ONE}; preset distillation is nearest",
    "prime_rl/sft": "answers of a frozen model: hybridrl sft trains on them",
    "areal/m2po": "it clips at eps_clip what M2PO leaves unclipped; preset m2po is the paper",
    "skyrl/prompt_mean": "an aggregation over the tokens of a prompt's answers, which no mode here has",
    "skyrl/cross_entropy": "answers as examples: hybridrl sft trains on them",
}
"""framework/name -> why there is no such preset, and what to use."""
