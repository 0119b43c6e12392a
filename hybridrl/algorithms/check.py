"""Checks one estimator or policy loss, built-in or from outside, on random ragged batches: `hybridrl algo
check`.

Each check states a property and whether it holds; none checks the formula itself.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybridrl import registry
from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.base import Advantage, AdvantageEstimator, Known, OneRank, Reduce
from hybridrl.algorithms.columns import on_ranks
from hybridrl.algorithms.objective import Objective
from hybridrl.algorithms.packages import PACKAGES
from hybridrl.algorithms.samples import RaggedBatch, ragged_batch, run_ranks
from hybridrl.algorithms.trial import gradient, variables
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.section import PluginConfig
from hybridrl.errors import UserCodeError


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@dataclass(frozen=True, slots=True)
class Check:
    """A property, whether it holds, and what was found."""

    name: str
    holds: bool
    text: str


def check_plugin(plugin: PluginConfig) -> list[Check]:
    """Checks of the estimator or policy loss of this name; a name of both is the estimator.

    Raises:
        ConfigError: there is neither, or an option is wrong.
    """
    if not _is_policy_loss(plugin.name):
        return check_estimator(plugin)
    found = registry.find(PACKAGES["policy_loss"], plugin.name, where="algorithm.loss")
    return check_policy_loss(plugin, min(getattr(found, "aggregates", ["token_mean"])))


def _is_policy_loss(name: str) -> bool:
    """Whether code from outside is a loss: by its mark, or by a parameter that only losses have."""
    if ":" not in name:
        known = {kind: name in registry.names(PACKAGES[kind]) for kind in ("estimator", "policy_loss")}
        return known["policy_loss"] and not known["estimator"]
    found = registry.find(PACKAGES["estimator"], name, where="algorithm.estimator")
    if (kind := registry.kind_of(found)) is not None:
        return kind == "policy_loss"
    if not callable(found):
        return False
    return "logp_T" in inspect.signature(found if inspect.isroutine(found) else found.__call__).parameters


def check_estimator(plugin: PluginConfig) -> list[Check]:
    """
    Raises:
        ConfigError: there is no such plug-in, or an option is wrong.
    """

    def advantage(
        batch: RaggedBatch, part: RaggedBatch | None = None, reduce: Reduce | None = None
    ) -> Tensor:
        # A new estimator each time: it may keep a state between steps.
        return _advantage(
            load_estimator(AlgorithmConfig(estimator=plugin)), batch, part or batch, reduce or OneRank()
        )

    estimator = load_estimator(AlgorithmConfig(estimator=plugin))
    token_level = on_ranks(estimator.needs)
    batch = ragged_batch(0, sizes=(4, 3, 4, 2, 1))
    batch.reward_N = batch.reward_N.abs()
    finite = _finite(advantage, batch, token_level)
    if not finite.holds:
        return [finite]
    return [
        finite,
        _any_order(advantage, batch, token_level),
        _flat_group(advantage, batch, token_level),
        _refuses_nan(advantage, batch),
        *(_token_checks(advantage, batch) if token_level else ()),
    ]


def _advantage(
    estimator: AdvantageEstimator, batch: RaggedBatch, part: RaggedBatch, reduce: Reduce
) -> Tensor:
    arguments = part.arguments(*estimator.needs)
    if on_ranks(estimator.needs):
        arguments = {**arguments, "tokens": part.tokens, "reduce": reduce}
    out = estimator(reward_N=batch.reward_N, group_N=batch.group_N, **arguments)
    return out.advantage_T if isinstance(out, Advantage) else out


_Run = Callable[..., Tensor]


def _finite(advantage: _Run, batch: RaggedBatch, token_level: bool) -> Check:
    found, expected = advantage(batch), len(batch.seq_T if token_level else batch.reward_N)
    holds = found.shape == (expected,) and bool(torch.isfinite(found).all())
    return Check("finite", holds, f"shape {tuple(found.shape)} of {expected}, a group of one included")


def _any_order(advantage: _Run, batch: RaggedBatch, token_level: bool) -> Check:
    order_N = torch.randperm(len(batch.reward_N), generator=torch.Generator().manual_seed(1))
    found, other = advantage(batch), batch.permuted(order_N)
    expected = (
        torch.cat([found[batch.seq_T == i] for i in order_N.tolist()]) if token_level else found[order_N]
    )
    holds = _close(advantage(other), expected)
    return Check(
        "permutation", holds, "the order of trajectories does not matter" if holds else "depends on the order"
    )


def _flat_group(advantage: _Run, batch: RaggedBatch, token_level: bool) -> Check:
    found = advantage(batch)
    flat = (batch.group_N == 1)[batch.seq_T] & batch.mask_T if token_level else batch.group_N == 1
    largest = float(found[flat].abs().max())
    text = f"largest advantage where all rewards of a group are equal: {largest:.3g}"
    return Check("flat group", bool(torch.isfinite(found[flat]).all()), text)


def _refuses_nan(advantage: _Run, batch: RaggedBatch) -> Check:
    broken = ragged_batch(0, sizes=(4, 3, 4, 2, 1))
    broken.reward_N = torch.full_like(broken.reward_N, torch.nan)
    broken.columns["reward_parts"] = torch.full_like(broken.columns["reward_parts"], torch.nan)
    try:
        found = advantage(broken)
    except (ValueError, UserCodeError) as error:
        return Check("non-finite reward", True, f"refused: {error}")
    unused = bool(torch.isfinite(found).all())
    return Check(
        "non-finite reward", unused, "does not use the reward" if unused else "goes through unnoticed"
    )


def _token_checks(advantage: _Run, batch: RaggedBatch) -> Iterator[Check]:
    found_T = advantage(batch)
    yield Check(
        "outside the mask", not found_T[~batch.mask_T].any(), "advantage is 0 at prompt and tool tokens"
    )
    same = torch.equal(advantage(_dirty(batch)), found_T)
    yield Check(
        "padding", same, "prompt and tool tokens have no influence" if same else "reads prompt or tool tokens"
    )
    for num_ranks in (2, 4):
        mine = _split(batch, num_ranks)
        parts = run_ranks(num_ranks, lambda r, reduce, m=mine: advantage(batch, batch.rows(m[r]), reduce))
        there = [found_T[torch.isin(batch.seq_T, torch.tensor(rows))] for rows in mine]
        holds = all(_close(a, b) for a, b in zip(parts, there, strict=True))
        yield Check(
            f"{num_ranks} ranks",
            holds,
            "together they compute what one rank does" if holds else "differ from one rank",
        )


def check_policy_loss(plugin: PluginConfig, aggregate: str) -> list[Check]:
    """
    Raises:
        ConfigError: there is no such plug-in, an option is wrong, or the loss is not defined for the
            aggregation mode.
    """
    objective = Objective(AlgorithmConfig(loss=plugin, aggregate=aggregate), max_response_tokens=16)
    batch = _within_reach(objective)
    loss, grad_TJ = _loss(objective, batch, 1, 1)
    dirty_loss, dirty_TJ = _loss(objective, _dirty(batch), 1, 1)
    masked = not grad_TJ[~batch.mask_T].any()
    same = torch.equal(loss, dirty_loss) and torch.equal(grad_TJ, dirty_TJ) and masked
    finite = bool(torch.isfinite(loss) & torch.isfinite(grad_TJ).all() & grad_TJ.any())
    return [
        Check(
            "gradient", finite, f"loss {float(loss):.4g}, largest gradient {float(grad_TJ.abs().max()):.3g}"
        ),
        Check(
            "padding",
            same,
            "prompt and tool tokens have no influence" if same else "reads prompt or tool tokens",
        ),
        _direction(objective, batch),
        *_splits(objective, batch, loss, grad_TJ),
    ]


def _within_reach(objective: Objective) -> RaggedBatch:
    """A batch whose policy has moved as far as the loss allows: a loss with a narrow trust region is 0 on a
    policy that is far away."""
    far, near = ragged_batch(0), ragged_batch(0)
    old_T = near.columns["old_logp"]
    for name in ("logp", "rollout_logp"):
        near.columns[name] = old_T + 0.1 * (near.columns[name] - old_T)
    return far if _loss(objective, far, 1, 1)[1].any() else near


def _direction(objective: Objective, batch: RaggedBatch) -> Check:
    """Checks that before the first update a step makes good tokens likelier and bad ones less likely."""
    start = ragged_batch(0)
    for name in ("logp", "rollout_logp", "ref_logp"):
        start.columns[name] = start.columns["old_logp"].clone()
    _, grad_TJ = _loss(objective, start, 1, 1)
    wrong = int(((-grad_TJ[:, 0] * start.columns["advantage"])[start.mask_T] < -1e-9).sum())
    return Check(
        "direction", wrong == 0, f"{wrong} of {int(batch.mask_T.sum())} tokens are pushed the wrong way"
    )


def _splits(objective: Objective, batch: RaggedBatch, loss: Tensor, grad_TJ: Tensor) -> Iterator[Check]:
    for num_ranks, num_microbatches in ((1, 4), (2, 1), (4, 2)):
        other, other_TJ = _loss(objective, batch, num_ranks, num_microbatches)
        holds = _close(other, loss) and _close(other_TJ, grad_TJ)
        text = "same loss and gradient" if holds else f"loss {float(other):.9g}, not {float(loss):.9g}"
        yield Check(f"{num_ranks} ranks, {num_microbatches} microbatches", holds, text)


def _loss(
    objective: Objective, batch: RaggedBatch, num_ranks: int, num_microbatches: int
) -> tuple[Tensor, Tensor]:
    """Loss, and its gradient as `trial.gradient` gives it, [T, J]; summed over ranks and microbatches."""
    mine = _split(batch, num_ranks)
    made = run_ranks(num_ranks, lambda r, reduce: _columns(objective, batch, batch.rows(mine[r]), reduce))
    heads = batch.columns["head_logp"].shape[1] if "head_logp" in objective.columns else 0
    total = torch.zeros((), dtype=torch.float64)
    grad_TJ = batch.columns["logp"].new_zeros(len(batch.seq_T), 1 + heads)
    for rows, columns in zip(mine, made, strict=True):
        held = batch.rows(rows)
        for k in range(num_microbatches):
            chosen = rows[k::num_microbatches]
            part, here_T = batch.rows(chosen), torch.isin(held.seq_T, torch.tensor(chosen, dtype=torch.int64))
            own = {n: c[here_T] for n, c in columns.items()}
            inputs = variables(part.columns["logp"], own)
            share, _ = objective(
                inputs[0], part.columns["entropy"], own, part.columns["advantage"], part.tokens, batch.totals
            )
            total = total + share.detach()
            at_T = torch.isin(batch.seq_T, torch.tensor(chosen, dtype=torch.int64))
            grad_TJ[at_T] = gradient(share, inputs)
    return total, grad_TJ


def _columns(
    objective: Objective, batch: RaggedBatch, part: RaggedBatch, reduce: Reduce
) -> Mapping[str, Any]:
    columns = {n: part.columns[n] for n in objective.columns}
    if not objective.prepares:
        return columns
    known = Known(0, batch.reward_N, batch.group_N, part.columns["advantage"], part.tokens, columns)
    return columns | objective.prepare(known, reduce).columns


def _split(batch: RaggedBatch, num_ranks: int) -> list[list[int]]:
    return [list(range(rank, len(batch.reward_N), num_ranks)) for rank in range(num_ranks)]


def _dirty(batch: RaggedBatch) -> RaggedBatch:
    """The same batch with NaN at all tokens that a plug-in must not read."""
    per_token = {
        n: c for n, c in batch.columns.items() if len(c) == len(batch.seq_T) and c.is_floating_point()
    }
    nan = {n: c.clone() for n, c in per_token.items()}
    for column_T in nan.values():
        column_T[~batch.mask_T] = torch.nan
    return RaggedBatch(batch.reward_N, batch.group_N, batch.seq_T, batch.mask_T, batch.columns | nan)
