"""Estimators on packed tokens, against plain Python over lists of trained tokens; and over ranks."""

import math
from statistics import mean, stdev

import pytest
import torch

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.base import OneRank, Tokens
from hybridrl.algorithms.columns import argument
from hybridrl.algorithms.estimators.prime import implicit_reward_loss
from hybridrl.config.schema import AlgorithmConfig

KL = {"coefficient": 0.1, "estimator": "k1", "in": "reward"}


def run(config, batch, part=None, reduce=None):
    made = load_estimator(config)
    part = part or batch
    columns = {argument(c): part.columns[c] for c in made.needs}
    return made(
        reward_N=batch.reward_N,
        group_N=batch.group_N,
        tokens=part.tokens,
        reduce=reduce or OneRank(),
        **columns,
    )


def config_of(name, kl=None, teacher=0.0, **options):
    more = {"kl": kl} if kl else {}
    return AlgorithmConfig(estimator={"name": name, **options}, teacher_coefficient=teacher, **more)


def peers_of(batch, i):
    return [j for j, g in enumerate(batch.groups) if g == batch.groups[i]]


def token_rewards(batch, beta=0.0):
    pairs = zip(batch.rewards, batch.trained("old_logp"), batch.trained("ref_logp"), strict=True)
    rows = [(s, [-beta * (a - b) for a, b in zip(old, ref, strict=True)]) for s, old, ref in pairs]
    return [[*row[:-1], row[-1] + s] if row else [] for s, row in rows]


def backward(row, factor):
    total, out = 0.0, []
    for x in reversed(row):
        total = x + factor * total
        out.append(total)
    return out[::-1]


def whitened(rows):
    every = [x for row in rows for x in row]
    return [[(x - mean(every)) / math.sqrt(stdev(every) ** 2 + 1e-8) for x in row] for row in rows]


def gae(batch, beta=0.0, discount=1.0, policy=1.0, value=None, adaptive=None):
    advantages, returns = [], []
    for r, v in zip(token_rewards(batch, beta), batch.trained("value"), strict=True):
        delta = [a + discount * b - c for a, b, c in zip(r, [*v[1:], 0], v, strict=True)]
        own = policy if adaptive is None else max(0, 1 - 1 / (adaptive * max(len(r), 1)))
        advantages.append(backward(delta, discount * own))
        target = backward(delta, discount * (policy if value is None else value))
        returns.append([a + b for a, b in zip(target, v, strict=True)])
    return whitened(advantages), returns


def optimal_token_baseline(batch, discount=1.0, cap=None, zero_tail=True):
    G = [backward(row, discount) for row in token_rewards(batch)]
    columns = [batch.trained(n) for n in ("old_logp", "old_collision", "rollout_logp")]
    W = []
    for old, collision, engine in zip(*columns, strict=True):
        w = [min(math.exp(a - b), cap) ** 2 if cap else 1 for a, b in zip(old, engine, strict=True)]
        energy = [(1 - 2 * math.exp(a) + c) * u for a, c, u in zip(old, collision, w, strict=True)]
        W.append([sum(energy[: t + 1]) for t in range(len(energy))])
    out = []
    for i, row in enumerate(G):
        group, new = peers_of(batch, i), []
        for t, g in enumerate(row):
            there = [j for j in group if t < len(G[j])]
            baseline = sum(G[j][t] * W[j][t] for j in there) / (sum(W[j][t] for j in there) + 1e-8)
            new.append(0 if len(group) == 1 else g if zero_tail and len(there) == 1 else g - baseline)
        out.append(new)
    return out


def turn_baseline(batch, discount=1.0, zero_tail=True):
    """Every turn of a group against the other answers' turn of the same number; the weight is the energy of
    all tokens up to its end."""
    returns, places = turn_returns(batch, discount)
    weights = {}
    for i, turns in enumerate(places):
        pairs = zip(batch.trained("old_logp")[i], batch.trained("old_collision")[i], strict=True)
        energy = [1 - 2 * math.exp(a) + c for a, c in pairs]
        for k in set(turns):
            weights[i, k] = sum(e for e, turn in zip(energy, turns, strict=True) if turn <= k)
    out = []
    for i, turns in enumerate(places):
        row, group = {}, peers_of(batch, i)
        for k in set(turns):
            there = [j for j in group if (j, k) in returns]
            total = sum(returns[j, k][0] * weights[j, k] for j in there)
            baseline = total / (sum(weights[j, k] for j in there) + 1e-8)
            own = returns[i, k][0]
            row[k] = 0 if len(group) == 1 else own if zero_tail and len(there) == 1 else own - baseline
        out.append([row[k] for k in turns])
    return out


def taught(rows, batch, coefficient):
    """Advantages of each token, plus the teacher's term."""
    pairs = zip(rows, batch.trained("teacher_logp"), batch.trained("old_logp"), strict=True)
    return [[a + coefficient * (t - o) for a, t, o in zip(*row, strict=True)] for row in pairs]


def rloo_and_teacher(batch, coefficient, beta=0.0):
    penalty = [
        beta * sum(a - b for a, b in zip(old, ref, strict=True))
        for old, ref in zip(batch.trained("old_logp"), batch.trained("ref_logp"), strict=True)
    ]
    net = [s - p for s, p in zip(batch.rewards, penalty, strict=True)]
    rows = []
    for i, row in enumerate(batch.trained("old_logp")):
        others = [net[j] for j in peers_of(batch, i) if j != i]
        rows.append([net[i] - mean(others) if others else 0.0] * len(row))
    return taught(rows, batch, coefficient)


def prime(batch, discount=1.0):
    pairs = zip(batch.trained("process_logp"), batch.trained("ref_logp"), strict=True)
    rows = [[0.05 * (a - b) for a, b in zip(p, r, strict=True)] for p, r in pairs]
    means = [mean(row) if row else 0 for row in rows]
    out = []
    for i, row in enumerate(rows):
        others = [j for j in peers_of(batch, i) if j != i]
        base = mean(means[j] for j in others) if others else means[i]
        outcome = batch.rewards[i] - (mean(batch.rewards[j] for j in others) if others else batch.rewards[i])
        out.append([x + outcome for x in backward([p - base for p in row], discount)])
    return whitened(out)


def turn_returns(batch, discount):
    """{(trajectory, turn): (return, anchor)} and the turn of every trained token. Rewards of turns add up to
    the trajectory's reward."""
    rows = zip(
        batch.trained("turn"),
        batch.trained("turn_reward"),
        batch.trained("anchor"),
        batch.rewards,
        strict=True,
    )
    turns, places = {}, []
    for i, (turn, reward, anchor, s) in enumerate(rows):
        count = max(turn) + 1 if turn else 0
        sums = [sum(r for k, r in zip(turn, reward, strict=True) if k == t) for t in range(count)]
        if count:
            sums[-1] += s - sum(sums)
        for t, total in enumerate(backward(sums, discount)):
            turns[i, t] = (total, anchor[turn.index(t)])
        places.append(turn)
    return turns, places


def normalised(turns, key, eps=1e-6):
    out = {}
    for own in turns:
        peers = [turns[other][0] for other in turns if key(other) == key(own)]
        spread = stdev(peers) if len(peers) > 1 else 0
        out[own] = (turns[own][0] - mean(peers)) / (spread + eps) if spread > eps else 0
    return out


def gigpo(batch, discount=1.0):
    turns, places = turn_returns(batch, discount)
    turn = normalised(turns, lambda k: (batch.groups[k[0]], turns[k][1]))
    out = []
    for i, place in enumerate(places):
        group = [batch.rewards[j] for j in peers_of(batch, i)]
        spread = stdev(group) if len(group) > 1 else 0
        out.append([(batch.rewards[i] - mean(group)) / (spread + 1e-6) + turn[i, t] for t in place])
    return out


def step_reinforce(batch, discount=1.0, over="group"):
    turns, places = turn_returns(batch, discount)
    keys = {"group": lambda k: batch.groups[k[0]], "turn": lambda k: (batch.groups[k[0]], k[1])}
    turn = normalised(turns, keys.get(over, lambda k: 0))
    return [[turn[i, t] for t in place] for i, place in enumerate(places)]


def distillation(batch, coefficient=1.0, weight=0.0):
    out, pairs = [], zip(batch.trained("teacher_logp"), batch.trained("old_logp"), strict=True)
    for i, (teacher, old) in enumerate(pairs):
        group = [batch.rewards[j] for j in peers_of(batch, i)]
        outcome = (batch.rewards[i] - mean(group)) / ((stdev(group) if len(group) > 1 else 0) + 1e-6)
        out.append([coefficient * (a - b) + weight * outcome for a, b in zip(teacher, old, strict=True)])
    return out


def remax(batch, beta):
    greedy = batch.columns["greedy_reward"].tolist()
    rows = [backward(row, 1.0) for row in token_rewards(batch, beta)]
    return [[x - g for x in row] for row, g in zip(rows, greedy, strict=True)]


CASES = {
    "gae": (config_of("gae"), lambda b: gae(b)[0]),
    "gae discounted": (config_of("gae", discount=0.9, policy_lambda=0.8), lambda b: gae(b, 0, 0.9, 0.8)[0]),
    "gae adaptive": (config_of("gae", adaptive_lambda=0.4), lambda b: gae(b, adaptive=0.4)[0]),
    "gae kl": (config_of("gae", KL, policy_lambda=0.95), lambda b: gae(b, 0.1, 1, 0.95)[0]),
    "otb": (config_of("optimal_token_baseline"), optimal_token_baseline),
    "otb discounted": (
        config_of("optimal_token_baseline", discount=0.9, zero_tail=False),
        lambda b: optimal_token_baseline(b, 0.9, zero_tail=False),
    ),
    "otb weighted": (
        config_of("optimal_token_baseline", importance_cap=1.1),
        lambda b: optimal_token_baseline(b, cap=1.1),
    ),
    "otb turns": (config_of("optimal_token_baseline", level="turn"), turn_baseline),
    "otb turns discounted": (
        config_of("optimal_token_baseline", level="turn", discount=0.7, zero_tail=False),
        lambda b: turn_baseline(b, 0.7, zero_tail=False),
    ),
    "rloo teacher": (config_of("rloo", teacher=0.5), lambda b: rloo_and_teacher(b, 0.5)),
    "rloo kl teacher": (config_of("rloo", KL, teacher=2.0), lambda b: rloo_and_teacher(b, 2.0, 0.1)),
    "gae teacher": (config_of("gae", teacher=1.0), lambda b: taught(gae(b)[0], b, 1.0)),
    "prime": (config_of("prime"), prime),
    "prime discounted": (config_of("prime", discount=0.9), lambda b: prime(b, 0.9)),
    "gigpo": (config_of("gigpo"), gigpo),
    "gigpo discounted": (config_of("gigpo", discount=0.7), lambda b: gigpo(b, 0.7)),
    "step_reinforce": (config_of("step_reinforce"), step_reinforce),
    "step_reinforce turn": (
        config_of("step_reinforce", over="turn", discount=0.7),
        lambda b: step_reinforce(b, 0.7, "turn"),
    ),
    "step_reinforce batch": (
        config_of("step_reinforce", over="batch", discount=0.7),
        lambda b: step_reinforce(b, 0.7, "batch"),
    ),
    "distillation": (config_of("distillation"), distillation),
    "distillation outcome": (
        config_of("distillation", coefficient=0.5, outcome_weight=2.0),
        lambda b: distillation(b, 0.5, 2.0),
    ),
    "remax kl": (config_of("remax", KL), lambda b: remax(b, 0.1)),
}


def assert_rows(batch, column_T, rows, tolerance):
    flat = torch.tensor([x for row in rows for x in row], dtype=column_T.dtype)
    torch.testing.assert_close(column_T[batch.mask_T], flat, rtol=tolerance, atol=tolerance)
    assert not column_T[~batch.mask_T].any()


@pytest.mark.parametrize("name", CASES)
def test_equals_its_oracle(ragged, name):
    config, oracle = CASES[name]
    for seed in range(4):
        batch = ragged(seed, sizes=(4, 3, 4, 2, 1))
        assert_rows(batch, run(config, batch).advantage_T, oracle(batch), 1e-12)


@pytest.mark.parametrize("name", CASES)
def test_float32_is_as_good_as_float32(ragged, name):
    # Against the float64 oracle of the same float32 inputs.
    config, oracle = CASES[name]
    batch = ragged(5, torch.float32)
    assert_rows(batch, run(config, batch).advantage_T, oracle(batch), 1e-6)


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_ranks_together_equal_one(ragged, run_ranks, name, num_ranks):
    batch, config = ragged(6), CASES[name][0]
    whole_T = run(config, batch).advantage_T
    parts = [list(range(r, len(batch.reward_N), num_ranks)) for r in range(num_ranks)]
    found = run_ranks(
        num_ranks, lambda rank, reduce: run(config, batch, batch.rows(parts[rank]), reduce).advantage_T
    )
    for part, part_T in zip(parts, found, strict=True):
        torch.testing.assert_close(
            part_T, whole_T[torch.isin(batch.seq_T, torch.tensor(part))], rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("name", CASES)
def test_a_rank_without_trajectories_takes_part(ragged, run_ranks, name):
    batch, config = ragged(7), CASES[name][0]
    parts = [list(range(len(batch.reward_N))), []]
    found = run_ranks(2, lambda rank, reduce: run(config, batch, batch.rows(parts[rank]), reduce).advantage_T)
    assert torch.equal(found[0], run(config, batch).advantage_T) and len(found[1]) == 0


@pytest.mark.parametrize("name", CASES)
def test_nothing_outside_the_mask_matters(ragged, name):
    batch, config = ragged(8), CASES[name][0]
    before = run(config, batch).advantage_T
    for column, values_T in batch.columns.items():
        if len(values_T) == len(batch.seq_T) and values_T.is_floating_point():
            batch.columns[column] = values_T.clone()
            batch.columns[column][~batch.mask_T] = torch.nan
    torch.testing.assert_close(run(config, batch).advantage_T, before, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"policy_lambda": 0.9}, {"policy_lambda": 0.9, "value_lambda": 1.0}])
def test_value_targets_are_before_whitening(ragged, options):
    batch = ragged(9)
    found = run(config_of("gae", **options), batch)
    _, returns = gae(batch, policy=options.get("policy_lambda", 1.0), value=options.get("value_lambda"))
    assert_rows(batch, found.return_T, returns, 1e-12)


def test_gae_with_lambda_one_and_no_values_is_the_return(ragged):
    batch = ragged(10)
    batch.columns["value"] = torch.zeros_like(batch.columns["value"])
    found = run(config_of("gae", whiten=False), batch)
    assert_rows(batch, found.advantage_T, [backward(r, 1.0) for r in token_rewards(batch)], 1e-12)


def test_equal_states_of_different_groups_are_not_merged():
    # Elsewhere turns are grouped by their state alone, and strangers become each other's baseline.
    seq_T = torch.arange(4)
    tokens, zero_T = Tokens(seq_T, torch.ones(4, dtype=torch.bool), 4), torch.zeros(4, dtype=torch.int64)
    made = load_estimator(config_of("gigpo", episode_weight=0.0, scale_by_std=False))
    turn_reward_T = torch.tensor([1.0, 3.0, 10.0, 30.0])
    arguments = {"turn_T": zero_T, "anchor_T": zero_T + 5, "turn_reward_T": turn_reward_T}
    found = made(turn_reward_T, torch.tensor([0, 0, 1, 1]), tokens=tokens, reduce=OneRank(), **arguments)
    assert found.advantage_T.tolist() == [-1.0, 1.0, -10.0, 10.0]


def test_no_baseline_beyond_the_second_longest_answer():
    # With it, the tail of the longest answer would train on nothing.
    tokens = Tokens(torch.tensor([0, 0, 0, 1]), torch.ones(4, dtype=torch.bool), 2)
    half_T = torch.full((4,), 0.5)
    arguments = {"tokens": tokens, "reduce": OneRank(), "old_logp_T": half_T.log(), "old_collision_T": half_T}
    reward_N, group_N = torch.tensor([1.0, 0.0]), torch.tensor([0, 0])
    with_tail = load_estimator(config_of("optimal_token_baseline"))(
        reward_N, group_N, **arguments
    ).advantage_T
    without = load_estimator(config_of("optimal_token_baseline", zero_tail=False))(
        reward_N, group_N, **arguments
    )
    assert with_tail.tolist() == pytest.approx([0.5, 1.0, 1.0, -0.5])
    assert without.advantage_T.tolist() == pytest.approx([0.5, 0.0, 0.0, -0.5], abs=1e-6)


def test_the_implicit_reward_learns_the_outcome(ragged):
    batch = ragged(11)
    solved_N = (batch.reward_N > 0).double()
    process_T = batch.columns["process_logp"].clone().requires_grad_()

    def loss():
        arguments = {"beta": 0.05, "num_sequences": len(solved_N)}
        return implicit_reward_loss(process_T, batch.columns["ref_logp"], solved_N, batch.tokens, **arguments)

    logits = [
        0.05 * sum(a - b for a, b in zip(p, r, strict=True))
        for p, r in zip(batch.trained(process_T.detach()), batch.trained("ref_logp"), strict=True)
    ]
    expected = mean(
        math.log1p(math.exp(-x)) if y else math.log1p(math.exp(x))
        for x, y in zip(logits, solved_N.tolist(), strict=True)
    )
    assert float(loss().detach()) == pytest.approx(expected, abs=1e-12)
    loss().backward()
    up_T = solved_N[batch.seq_T].bool()
    assert (process_T.grad[batch.mask_T & up_T] < 0).all() and (
        process_T.grad[batch.mask_T & ~up_T] > 0
    ).all()
