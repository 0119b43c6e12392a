"""The other estimators on one value per trajectory, against plain Python."""

import math
from statistics import mean, pstdev, stdev

import pytest
import torch

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.estimators.a_star_po import soft_value
from hybridrl.config.schema import AlgorithmConfig


def estimator(name, **options):
    return load_estimator(AlgorithmConfig(estimator={"name": name, **options}))


def run(name, batch, **options):
    made = estimator(name, **options)
    return made(batch.reward_N, batch.group_N, **batch.arguments(*made.needs))


def groups_of(batch):
    return [[j for j, g in enumerate(batch.groups) if g == own] for own in batch.groups]


def grpo(values, peers, eps=1e-6):
    out = []
    for value, group in zip(values, peers, strict=True):
        inside = [values[j] for j in group]
        out.append((value - mean(inside)) / ((stdev(inside) if len(inside) > 1 else 0) + eps))
    return out


def whiten(values, counts):
    every = [v for v, n in zip(values, counts, strict=True) for _ in range(n)]
    return [(v - mean(every)) / math.sqrt(stdev(every) ** 2 + 1e-8) for v in values]


def grpo_passk(batch):
    out = []
    for i, group in enumerate(groups_of(batch)):
        ranked = sorted((batch.rewards[j] for j in group), reverse=True)
        leads = len(group) > 1 and batch.rewards[i] == ranked[0]
        out.append((ranked[0] - ranked[1]) / (stdev(ranked) + 1e-6) if leads else 0.0)
    return out


def opo(batch):
    length, out = batch.columns["length"].tolist(), []
    for i, group in enumerate(groups_of(batch)):
        total = sum(length[j] for j in group)
        out.append(batch.rewards[i] - sum(length[j] * batch.rewards[j] for j in group) / total)
    return out


def gpg(batch, count="informative", norm=1.0):
    s = batch.rewards
    flat = [len({s[j] for j in group}) == 1 for group in groups_of(batch)]
    counted = sum(not f for f in flat) if count == "informative" else sum(x != 0 for x in s)
    return [
        len(s) / counted * (x - mean(s[j] for j in group)) / norm
        for x, group in zip(s, groups_of(batch), strict=True)
    ]


def gdpo(batch, weights=(1, 1, 1), over="sequence"):
    total = [0.0] * len(batch.rewards)
    for k, weight in enumerate(weights):
        part = batch.columns["reward_parts"][:, k].tolist()
        total = [t + weight * a for t, a in zip(total, grpo(part, groups_of(batch)), strict=True)]
    return whiten(total, [1] * len(total) if over == "sequence" else batch.columns["length"].tolist())


def gdpo_leave_one_out(batch):
    """NeMo-RL's parts: mean and std of the other answers; undivided where that std is 0."""
    total = [0.0] * len(batch.rewards)
    for k in range(3):
        part = batch.columns["reward_parts"][:, k].tolist()
        for i, group in enumerate(groups_of(batch)):
            others = [part[j] for j in group if j != i]
            scale = stdev(others) if len(others) > 1 else 0.0
            centred = part[i] - mean(others) if others else 0.0
            total[i] += centred / (scale + 1e-6) if scale > 0 else centred
    return whiten(total, [1] * len(total))


def lite_ppo(batch):
    s = batch.rewards
    return [
        (x - mean(s[j] for j in group)) / (stdev(s) + 1e-6)
        for x, group in zip(s, groups_of(batch), strict=True)
    ]


def max_rl(batch):
    s = batch.rewards
    means = [mean(s[j] for j in group) for group in groups_of(batch)]
    return [(x - m) / (m + 1e-6) for x, m in zip(s, means, strict=True)]


def rae(batch, decay=0.95):
    baseline, out = {}, []
    for s, agent in zip(batch.rewards, batch.columns["agent"].tolist(), strict=True):
        out.append(s - baseline.get(agent, 0))
        baseline[agent] = decay * baseline.get(agent, 0) + (1 - decay) * s
    return out


def hierarchical(batch, episode_agents):
    rows = list(
        zip(batch.groups, batch.columns["agent"].tolist(), batch.columns["episode"].tolist(), strict=True)
    )
    keys = [(g, a, e if a in episode_agents else None) for g, a, e in rows]
    return [
        s - mean(batch.rewards[j] for j, other in enumerate(keys) if other == key)
        for s, key in zip(batch.rewards, keys, strict=True)
    ]


def group_norm(batch, mean_of, std_of, whitened="none", eps=1e-6, bessel=True):
    s, out = batch.rewards, []
    spread = stdev if bessel else pstdev
    for i, group in enumerate(groups_of(batch)):
        sets = {
            "none": [],
            "batch": s,
            "group": [s[j] for j in group],
            "others": [s[j] for j in group if j != i],
        }
        if {"group", "others"} & {mean_of, std_of} and len(group) == 1:
            out.append(0.0)
            continue
        value = s[i] - (mean(sets[mean_of]) if sets[mean_of] else 0)
        own = sets[std_of]
        scale = spread(own) if len(own) > 1 and len(set(own)) > 1 else 0
        out.append(value / (scale + eps) if scale else value)
    if whitened == "none":
        return out
    return whiten(out, batch.columns["length"].tolist() if whitened == "token" else [1] * len(s))


ORACLES = {
    "grpo_passk": grpo_passk,
    "opo": opo,
    "gpg": gpg,
    "gdpo": gdpo,
    "lite_ppo": lite_ppo,
    "max_rl": max_rl,
    "rae": rae,
    "hierarchical_grpo": lambda b: hierarchical(b, ()),
    "group_norm": lambda b: group_norm(b, "group", "group"),
    "remax": lambda b: [s - g for s, g in zip(b.rewards, b.columns["greedy_reward"].tolist(), strict=True)],
    "a_star_po": lambda b: [s - v for s, v in zip(b.rewards, b.columns["v_star"].tolist(), strict=True)],
}


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", ORACLES)
def test_equals_its_oracle(ragged, name, dtype, tolerance):
    for seed in range(5):
        batch = ragged(seed, dtype, sizes=(4, 3, 4, 2, 1))
        if name == "max_rl":
            batch.reward_N = batch.reward_N.abs()
        expected = torch.tensor(ORACLES[name](batch), dtype=dtype)
        torch.testing.assert_close(run(name, batch), expected, rtol=tolerance, atol=tolerance)


def test_gdpo_leaves_one_out_like_nemo(ragged):
    for seed in range(5):
        batch = ragged(seed, sizes=(4, 3, 4, 2, 1))
        expected = torch.tensor(gdpo_leave_one_out(batch), dtype=torch.float64)
        found_N = run("gdpo", batch, baseline="others")
        torch.testing.assert_close(found_N, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("whitened", ["none", "token", "sequence"])
@pytest.mark.parametrize("std_of", ["none", "batch", "group", "others"])
@pytest.mark.parametrize("mean_of", ["none", "batch", "group", "others"])
def test_every_cell_of_the_group_norm_grid(ragged, mean_of, std_of, whitened):
    batch = ragged(7, sizes=(4, 3, 4, 2, 1))
    found = run("group_norm", batch, mean=mean_of, std=std_of, whiten=whitened)
    expected = torch.tensor(group_norm(batch, mean_of, std_of, whitened), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


ROWS = {
    "grpo": {"mean": "group", "std": "group"},
    "dr_grpo": {"mean": "group", "std": "none"},
    "rloo": {"mean": "others", "std": "none"},
    "lite_ppo": {"mean": "group", "std": "batch"},
    "reinforce_plus_plus_baseline": {"mean": "group", "std": "none", "whiten": "token"},
    "reinforce_plus_plus": {"mean": "none", "std": "none", "whiten": "token"},
}


@pytest.mark.parametrize("name", ROWS)
def test_estimators_that_are_rows_of_the_grid(ragged, name):
    batch = ragged(8)
    torch.testing.assert_close(
        run("group_norm", batch, **ROWS[name]), run(name, batch), rtol=1e-12, atol=1e-12
    )


def test_biased_std_is_a_choice(ragged):
    batch = ragged(9)
    expected = torch.tensor(group_norm(batch, "group", "group", bessel=False), dtype=torch.float64)
    torch.testing.assert_close(run("group_norm", batch, bessel=False), expected, rtol=1e-12, atol=1e-12)


def test_others_with_equal_rewards_are_not_divided_by_their_rounding():
    # The others of the third answer are all 0.1: a std that is rounding only would blow its advantage up.
    made = estimator("group_norm", mean="others", std="others")
    reward_N = torch.tensor([0.1, 0.1, 1.0, 0.1])
    advantage_N = made(reward_N, torch.zeros(4, dtype=torch.int64), length_N=torch.ones(4, dtype=torch.int64))
    assert float(advantage_N[2]) == pytest.approx(0.9)


@pytest.mark.parametrize("singleton,expected", [("zero", 0.0), ("reward", 5 / (1 + 1e-6))])
def test_what_stays_of_a_group_of_one(singleton, expected):
    made = estimator("group_norm", singleton=singleton)
    reward_N, length_N = torch.tensor([5.0, 1.0, 0.0], dtype=torch.float64), torch.ones(3, dtype=torch.int64)
    assert float(made(reward_N, torch.tensor([0, 1, 1]), length_N=length_N)[0]) == pytest.approx(
        expected, abs=1e-12
    )


FLAT_IS_ZERO = ["grpo_passk", "opo", "gpg", "lite_ppo", "hierarchical_grpo", "group_norm", "max_rl"]


@pytest.mark.parametrize("name", FLAT_IS_ZERO)
def test_flat_groups_and_groups_of_one_get_exactly_zero(ragged, name):
    batch = ragged(10, torch.float32, sizes=(4, 3, 1))
    batch.reward_N = torch.where(batch.group_N == 0, batch.reward_N.abs(), 0.1)
    assert not run(name, batch)[batch.group_N > 0].any()


@pytest.mark.parametrize("name", sorted(set(ORACLES) - {"rae"}))
def test_order_of_trajectories_does_not_matter(ragged, name):
    batch = ragged(11)
    batch.reward_N = batch.reward_N.abs()
    order = torch.randperm(len(batch.reward_N), generator=torch.Generator().manual_seed(1))
    made = estimator(name)
    columns = {n: c[order] for n, c in batch.arguments(*made.needs).items()}
    shuffled = made(batch.reward_N[order], batch.group_N[order], **columns)
    torch.testing.assert_close(shuffled, run(name, batch)[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ORACLES)
def test_a_reward_that_is_not_finite_is_refused(ragged, name):
    batch = ragged(12)
    if name == "gdpo":
        batch.columns["reward_parts"][3, 1] = torch.nan
    batch.reward_N[3] = torch.nan
    with pytest.raises(ValueError, match=r"non-finite reward at \[3\]"):
        run(name, batch)


def test_gpg_counts_trajectories_of_groups_that_teach_something():
    # With rewards of -1 and 1 a count of non-zero rewards never rescales anything.
    reward_N = torch.tensor([1.0, -1.0, 1.0, 1.0])
    group_N = torch.tensor([0, 0, 1, 1])
    assert estimator("gpg")(reward_N, group_N).tolist() == [2.0, -2.0, 0.0, 0.0]
    assert estimator("gpg", count="nonzero")(reward_N, group_N).tolist() == [1.0, -1.0, 0.0, 0.0]


def test_gdpo_weights_must_match_the_parts(ragged):
    with pytest.raises(ValueError, match="2 weights for 3 parts"):
        run("gdpo", ragged(13), weights=[1.0, 2.0])


def test_gdpo_weights(ragged):
    batch = ragged(13)
    for over in ("sequence", "token"):
        expected = torch.tensor(gdpo(batch, (0.5, 2, 0), over), dtype=torch.float64)
        found = run("gdpo", batch, weights=[0.5, 2.0, 0.0], whiten=over)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_max_rl_refuses_negative_rewards(ragged):
    with pytest.raises(ValueError, match="negative reward"):
        run("max_rl", ragged(14))


@pytest.mark.parametrize("episode_agents", [(0,), (1,), (0, 1)])
def test_hierarchical_roles_within_their_episode(ragged, episode_agents):
    batch = ragged(15, sizes=(6, 6))
    expected = torch.tensor(hierarchical(batch, episode_agents), dtype=torch.float64)
    found = run("hierarchical_grpo", batch, episode_agents=list(episode_agents))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_running_baselines_survive_a_resume(ragged):
    # Elsewhere they restart at 0, and the first steps after a resume are biased.
    first, second = ragged(16), ragged(17)
    whole = estimator("rae")
    whole(first.reward_N, first.group_N, agent_N=first.columns["agent"])
    resumed = estimator("rae")
    resumed.load_state_dict(whole.state_dict())
    arguments = {"reward_N": second.reward_N, "group_N": second.group_N, "agent_N": second.columns["agent"]}
    assert torch.equal(resumed(**arguments), whole(**arguments))


def test_soft_value_lies_between_mean_and_maximum(ragged):
    batch = ragged(18)
    for beta in (1e-3, 0.5, 1e4):
        expected = [
            beta * math.log(mean(math.exp((batch.rewards[j] - 5) / beta) for j in group)) + 5
            if beta > 0.1
            else None
            for group in groups_of(batch)
        ]
        value_N = soft_value(batch.reward_N, batch.group_N, beta)
        means = torch.tensor(
            [mean(batch.rewards[j] for j in g) for g in groups_of(batch)], dtype=torch.float64
        )
        bests = torch.tensor(
            [max(batch.rewards[j] for j in g) for g in groups_of(batch)], dtype=torch.float64
        )
        assert (value_N >= means - 1e-6).all() and (value_N <= bests + 1e-6).all()
        if beta == 0.5:
            torch.testing.assert_close(
                value_N, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9
            )
