"""How far the trainer's probabilities of sampled tokens are from the engine's. Metric names are verl's."""

import torch
from torch import Tensor

from hybridrl.algorithms.base import Reduce


def agreement(rollout_logp: Tensor, old_logp: Tensor, reduce: Reduce) -> dict[str, float]:
    """Differences and correlation over the trained tokens of all data-parallel ranks. *Collective* over them.

    Args:
        rollout_logp, old_logp: what engine and trainer say about the tokens of this rank.
    """
    log_p, log_q = rollout_logp.double(), old_logp.double()
    p, q = log_p.exp(), log_q.exp()
    gap = (p - q).abs()
    terms = (torch.ones_like(p), gap, gap.square(), p, q, p.square(), q.square(), p * q)
    n, gaps, gap_squares, sum_p, sum_q, pp, qq, pq = reduce.sum(
        torch.stack([t.sum() for t in terms])
    ).tolist()
    none = p.new_zeros(1)  # a rank may hold no token
    largest = torch.stack([torch.cat([none, gap]).max(), torch.cat([none, (log_p - log_q).abs()]).max()])
    gap_max, logp_gap_max = reduce.max(largest).tolist()
    count = max(n, 1.0)
    spread = max((n * pp - sum_p**2) * (n * qq - sum_q**2), 0.0) ** 0.5
    return {
        "training/rollout_probs_diff_mean": gaps / count,
        "training/rollout_probs_diff_max": gap_max,
        "training/rollout_probs_diff_std": max(gap_squares / count - (gaps / count) ** 2, 0.0) ** 0.5,
        "training/rollout_logp_diff_max": logp_gap_max,
        "training/rollout_actor_probs_pearson_corr": (n * pq - sum_p * sum_q) / spread if spread > 0 else 1.0,
    }
