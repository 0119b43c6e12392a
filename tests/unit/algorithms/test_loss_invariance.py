"""Of every policy loss: any split into ranks and microbatches, nothing outside the mask, the policy gradient
at the start."""

import pytest
import torch

from hybridrl import registry
from hybridrl.algorithms.base import Metrics
from hybridrl.algorithms.objective import Objective
from hybridrl.algorithms.packages import PACKAGES
from hybridrl.config.schema import AlgorithmConfig

# Options that make clips, masks and choices act on small random batches.
OPTIONS = {
    **{name: {} for name in registry.names(PACKAGES["policy_loss"])},
    "ppo_clip": {"dual_clip": 1.2},
    "ppo_clip sequence": {"level": "sequence", "clip_low": 0.05, "clip_high": 0.1},
    "sapo sequence": {"level": "sequence"},
    "cispo sequence": {"level": "sequence", "clip_low": 0.05, "clip_high": 0.1},
    "cispo zero": {"outside": "zero", "clip_low": 0.2, "clip_high": 0.3},
    "flash_reinforce": {"delta": 0.03},
    "gspo": {"clip_low": 0.05, "clip_high": 0.1},
    "luspo": {"clip_low": 0.05, "clip_high": 0.1},
    "cispo": {"clip_low": 0.2, "clip_high": 0.3},
    "dppo_tv": {"delta_low": 0.1, "delta_high": 0.1, "drift": 0.01},
    "dppo_kl": {"delta_low": 0.02, "delta_high": 0.05},
    "dro": {"beta": 0.5},
    "dro token": {"beta": 0.5, "over": "token"},
    "kimi_k15 token": {"over": "token"},
    "decoupled_ppo interpolated": {"near": "interpolated", "cap": None},
    "opsm": {"delta": 0.02},
    "vespo sampling": {"since": "sampling"},
    "score_centering alone": {"cap": None},
    "teacher_divergence forward": {"beta": 0.0},
    "clip_cov": {"share": 0.1, "lowest": 0.1},
    "kl_cov": {"share": 0.1},
    "m2po": {"tau": 0.01},
    "pf_ppo max_random": {"way": "max_random"},
}


def config_of(name):
    plugin = {"name": name.split()[0], **OPTIONS[name]}
    allowed = getattr(registry.find(PACKAGES["policy_loss"], plugin["name"]), "aggregates", {"token_mean"})
    return AlgorithmConfig(loss=plugin, aggregate=sorted(allowed)[0])


def split_run(name, batch, num_ranks, num_microbatches, run_ranks, prepared, evaluate):
    """Loss, gradient and metrics summed over ranks and microbatches."""
    objective = Objective(config_of(name))
    grad_T, num_seqs = torch.zeros_like(batch.columns["logp"]), len(batch.reward_N)
    mine = [list(range(r, num_seqs, num_ranks)) for r in range(num_ranks)]
    made = run_ranks(num_ranks, lambda r, reduce: prepared(objective, batch, batch.rows(mine[r]), reduce))
    total, metrics = 0.0, Metrics()
    for rank, columns in enumerate(made):
        whole = batch.rows(mine[rank])
        for k in range(num_microbatches):
            chosen = mine[rank][k::num_microbatches]
            part, here_T = (
                batch.rows(chosen),
                torch.isin(whole.seq_T, torch.tensor(chosen, dtype=torch.int64)),
            )
            logp_T = part.columns["logp"].clone().requires_grad_()
            scalar, more = evaluate(
                objective, {n: c[here_T] for n, c in columns.items()}, part, logp_T, batch.totals
            )
            scalar.backward()
            grad_T[torch.isin(batch.seq_T, torch.tensor(chosen, dtype=torch.int64))] = logp_T.grad
            total, metrics = total + scalar.detach(), metrics.merge(more)
    return total, grad_T, metrics


@pytest.mark.parametrize("name", OPTIONS)
def test_no_split_changes_loss_gradient_or_metrics(ragged, run_ranks, prepared, evaluate, name):
    batch = ragged(5, torch.float32)
    loss, grad_T, metrics = split_run(name, batch, 1, 1, run_ranks, prepared, evaluate)
    scale = float(grad_T.abs().max()) or 1.0
    for num_ranks in (1, 2, 4):
        for num_microbatches in (1, 2, 4, 8):
            other, other_T, others = split_run(
                name, batch, num_ranks, num_microbatches, run_ranks, prepared, evaluate
            )
            torch.testing.assert_close(other, loss, rtol=2e-6, atol=2e-6)
            torch.testing.assert_close(other_T / scale, grad_T / scale, rtol=2e-6, atol=2e-6)
            for found, expected in ((others.sum, metrics.sum), (others.max, metrics.max)):
                torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_nothing_outside_the_mask_matters(ragged, prepared, evaluate, name):
    batch, objective = ragged(6), Objective(config_of(name))

    def run():
        logp_T = batch.columns["logp"].clone().requires_grad_()
        scalar, metrics = evaluate(objective, prepared(objective, batch), batch, logp_T)
        scalar.backward()
        return scalar, logp_T.grad, metrics

    scalar, grad_T, metrics = run()
    for column, values_T in batch.columns.items():
        if len(values_T) == len(batch.seq_T) and values_T.is_floating_point():
            batch.columns[column] = values_T.clone()
            batch.columns[column][~batch.mask_T] = torch.nan
    dirty, dirty_T, dirty_metrics = run()
    assert torch.equal(dirty, scalar) and torch.equal(dirty_T, grad_T) and dirty_metrics == metrics
    assert not grad_T[~batch.mask_T].any()


HEADS = {
    "score_centering",
    "score_centering alone",
    "teacher_divergence",
    "teacher_divergence forward",
}  # random heads, of which no two are equal
REGRESSIONS = {"a_star_po", "copg"}  # they fit a target: no policy gradient at the start
EXTRA = {"vapo", "pf_ppo", "pf_ppo max_random", "clip_cov", "kl_cov"}  # they add to it, or choose tokens


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - REGRESSIONS - EXTRA - HEADS))
def test_on_policy_every_loss_is_the_policy_gradient(ragged, prepared, evaluate, name):
    batch = ragged(7)
    for column in ("rollout_logp", "logp"):
        batch.columns[column] = batch.columns["old_logp"].clone()
    batch.columns["lag"] = torch.zeros_like(batch.columns["lag"])

    def gradient(loss, mode):
        objective = Objective(AlgorithmConfig(loss=loss, aggregate=mode))
        logp_T = batch.columns["logp"].clone().requires_grad_()
        evaluate(objective, prepared(objective, batch), batch, logp_T)[0].backward()
        return logp_T.grad

    config = config_of(name)
    plain_T = gradient("reinforce", config.aggregate)
    torch.testing.assert_close(gradient(config.loss, config.aggregate), plain_T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPTIONS)
def test_inputs_are_left_as_they_were(ragged, prepared, evaluate, name):
    # Elsewhere one of these losses writes its penalty into the columns that it was given.
    batch, untouched, objective = ragged(8), ragged(8), Objective(config_of(name))
    evaluate(objective, prepared(objective, batch), batch, batch.columns["logp"])
    assert all(torch.equal(c, untouched.columns[n]) for n, c in batch.columns.items())


@pytest.mark.parametrize("name,column", [("kl_cov", "penalised"), ("clip_cov", "kept")])
def test_a_share_of_tokens_is_a_share_not_a_count(ragged, prepared, name, column):
    # Elsewhere a share is compared with a number of tokens, and the whole batch is chosen.
    batch = ragged(9, sizes=(16,) * 8)
    loss = {"name": name, "share": 0.01, **({"lowest": 0.0} if name == "clip_cov" else {})}
    made = prepared(Objective(AlgorithmConfig(loss=loss)), batch)[column]
    chosen = made == (1 if column == "penalised" else 0)
    assert int((chosen & batch.mask_T).sum()) == int(0.01 * int(batch.mask_T.sum()))


def test_a_random_choice_depends_on_seed_and_step_alone(ragged, prepared):
    # Elsewhere it draws from the global generator, and ranks and reruns differ.
    batch = ragged(9, sizes=(16,) * 8)
    loss = {"name": "clip_cov", "share": 0.05, "lowest": 0.0}
    torch.manual_seed(1)
    first = prepared(Objective(AlgorithmConfig(loss=loss)), batch)["kept"]
    torch.manual_seed(2)
    again = prepared(Objective(AlgorithmConfig(loss=loss)), batch)["kept"]
    other = prepared(Objective(AlgorithmConfig(loss={**loss, "seed": 1})), batch)["kept"]
    assert torch.equal(first, again) and not torch.equal(first, other)
