"""Metrics of the gap between the engine's probabilities and the trainer's, and of the cost of correcting for
it.

They are taken over the trained tokens, or trajectories, of all ranks, under verl's names. All functions are
*collective*.
Shape letters: T packed tokens held here, S trajectories (tokens.num_seqs).
"""

import math

import torch
from torch import Tensor

from hybridrl.algorithms.base import Reduce, Tokens
from hybridrl.algorithms.ratios import MAX_LOG_RATIO
from hybridrl.algorithms.sequences import masked, sequence_length, sequence_mean, sequence_sum


def weight_metrics(
    weight_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, reduce: Reduce
) -> dict[str, Tensor]:
    """Metrics of the final weights; a token of weight 0 is left out of training.

    ratio_fraction_high and _low: share of tokens whose ratio is above 2, or below 1/2.

    Args:
        log_ratio_T: old_logp - rollout_logp, 0 outside the mask.
    """
    weight_T = masked(weight_T, tokens).double()
    mean, std = _mean_std(weight_T, tokens, reduce)
    low, high = _range(weight_T, tokens, reduce)
    square = _means(reduce, tokens, weight_T.square())[0]
    out_T = masked(weight_T == 0, tokens).double()
    above_T, below_T = masked(log_ratio_T > math.log(2), tokens), masked(log_ratio_T < -math.log(2), tokens)
    above, below, left_out = _means(reduce, tokens, above_T.double(), below_T.double(), out_T)
    has_S = sequence_length(tokens, torch.float64) > 0
    out_S = has_S & (sequence_sum(weight_T, tokens) == 0)
    seq_out, num_seqs = reduce.sum(torch.stack([out_S.sum(), has_S.sum()])).double()
    return {
        "rollout_corr/rollout_is_mean": mean,
        "rollout_corr/rollout_is_std": std,
        "rollout_corr/rollout_is_max": high,
        "rollout_corr/rollout_is_min": low,
        "rollout_corr/rollout_is_eff_sample_size": mean.square() / square.clamp(min=1e-300),
        "rollout_corr/rollout_is_ratio_fraction_high": above,
        "rollout_corr/rollout_is_ratio_fraction_low": below,
        "rollout_corr/rollout_rs_masked_fraction": left_out,
        "rollout_corr/rollout_rs_seq_masked_fraction": seq_out / num_seqs.clamp(min=1),
    }


def divergence_metrics(
    old_logp_T: Tensor, rollout_logp_T: Tensor, tokens: Tokens, reduce: Reduce
) -> dict[str, Tensor]:
    """Metrics of the two policies, with or without a correction: divergences, perplexities, differences,
    correlation."""
    old_T, rollout_T = masked(old_logp_T, tokens).double(), masked(rollout_logp_T, tokens).double()
    moved_T = (old_T - rollout_T).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    gap_T, probs_gap_T = moved_T.abs(), masked((old_T.exp() - rollout_T.exp()).abs(), tokens)
    k3_T = masked(torch.expm1(moved_T) - moved_T, tokens)
    kl, k3, square, difference = _means(
        reduce, tokens, -moved_T, k3_T, masked((2 * moved_T).exp(), tokens), gap_T
    )
    probs_mean, probs_std = _mean_std(probs_gap_T, tokens, reduce)
    has_S = sequence_length(tokens, torch.float64) > 0
    old_S, rollout_S = -sequence_mean(old_T, tokens), -sequence_mean(rollout_T, tokens)
    product_S = (2 * sequence_sum(moved_T, tokens)).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    rows = torch.stack([old_S.exp(), rollout_S.exp(), old_S - rollout_S, product_S, torch.ones_like(old_S)])
    sums = reduce.sum((rows * has_S).sum(1))
    old_ppl, rollout_ppl, log_ppl, seq_square = sums[:4] / sums[4].clamp(min=1)
    return {
        "rollout_corr/kl": kl,
        "rollout_corr/k3_kl": k3,
        "rollout_corr/chi2_token": square - 1,
        "rollout_corr/chi2_seq": seq_square - 1,
        "rollout_corr/training_ppl": old_ppl,
        "rollout_corr/rollout_ppl": rollout_ppl,
        "rollout_corr/log_ppl_diff": log_ppl,
        "rollout_corr/logp_abs_diff_mean": difference,
        "rollout_corr/logp_abs_diff_max": _range(gap_T, tokens, reduce)[1],
        "training/rollout_probs_diff_mean": probs_mean,
        "training/rollout_probs_diff_std": probs_std,
        "training/rollout_probs_diff_max": _range(probs_gap_T, tokens, reduce)[1],
        "training/rollout_actor_probs_pearson_corr": _pearson(old_T.exp(), rollout_T.exp(), tokens, reduce),
    }


def _means(reduce: Reduce, tokens: Tokens, *columns: Tensor) -> Tensor:
    """Mean of each column over trained tokens; the columns have to be 0 at all other tokens."""
    sums = reduce.sum(torch.stack([*(c.sum() for c in columns), tokens.mask_T.sum().double()]))
    return sums[:-1] / sums[-1].clamp(min=1)


def _mean_std(value_T: Tensor, tokens: Tokens, reduce: Reduce) -> tuple[Tensor, Tensor]:
    mean = _means(reduce, tokens, value_T)[0]
    variance = _means(reduce, tokens, masked((value_T - mean).square(), tokens))[0]
    return mean, variance.sqrt()


def _range(value_T: Tensor, tokens: Tokens, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Smallest and largest value over trained tokens; 0 if there are none."""
    trained_M = value_T[tokens.mask_T]
    ends = (
        torch.stack([-trained_M.amin(), trained_M.amax()])
        if len(trained_M)
        else value_T.new_full((2,), -torch.inf)
    )
    minus_low, high = reduce.max(ends)
    return (-minus_low).nan_to_num(posinf=0), high.nan_to_num(neginf=0)


def _pearson(a_T: Tensor, b_T: Tensor, tokens: Tokens, reduce: Reduce) -> Tensor:
    """Pearson correlation over trained tokens; 0 if one column does not vary."""
    mean_a, mean_b = _means(reduce, tokens, masked(a_T, tokens), masked(b_T, tokens))
    a_T, b_T = masked(a_T - mean_a, tokens), masked(b_T - mean_b, tokens)
    ab, aa, bb = _means(reduce, tokens, a_T * b_T, a_T * a_T, b_T * b_T)
    return ab / (aa * bb).sqrt().clamp(min=1e-300)
