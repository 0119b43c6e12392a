"""Columns of a batch, by name: what a plug-in may need. Imports no torch."""

from collections.abc import Mapping

Column = str

SCALARS: Mapping[Column, str] = {
    "length": "trained tokens",
    "prompt_length": "tokens of the prompt",
    "turns": "answers of the policy in a conversation, 1 without tools",
    "truncated": "True where the answer was cut at the token limit",
    "reward_parts": "[N, K], the named parts of the reward in alphabetical order of their names",
    "greedy_reward": "reward of the greedy answer to the same prompt",
    "v_star": "soft value of the prompt under the reference policy",
    "agent": "int64, role of the trajectory in its episode",
    "episode": "int64, which trajectories were played together",
}
"""Columns of one value per trajectory, and what they mean."""

TOKENS: Mapping[Column, str] = {
    "rollout_logp": "by the engine, at sampling",
    "old_logp": "by the trainer, before the update",
    "ref_logp": "by the reference policy",
    "teacher_logp": "by the teacher of a distillation",
    "process_logp": "by the implicit process reward model",
    "old_entropy": "by the trainer before the update, of the whole distribution, in nats",
    "old_collision": "by the trainer before the update: sum of the squared probabilities of all tokens",
    "value": "of the answer up to and without this token",
    "token_reward": "outcome reward on the last trained token, less KL penalties; made by load_estimator",
    "lag": "policy updates between the version that sampled the token and the one of the trainer",
    "turn": "int64, which answer of the policy in a conversation the token belongs to, from 0",
    "anchor": "int64, same number for turns that began in the same environment state",
    "turn_reward": "reward of the environment on the last token of a turn, 0 elsewhere",
}
"""Columns of one value per token, aligned with it, 0 where the loss mask is 0."""

SCALAR_COLUMNS = frozenset(SCALARS)
TOKEN_COLUMNS = frozenset(TOKENS)


def argument(column: Column) -> str:
    """The parameter that receives a column: "length" -> "length_N", "old_logp" -> "old_logp_T"."""
    if column == "reward_parts":
        return "reward_parts_NK"
    return f"{column}_N" if column in SCALAR_COLUMNS else f"{column}_T"
