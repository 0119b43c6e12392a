"""The advantages of other frameworks in plain Python: functions of a RaggedBatch that return one list of
advantages per trajectory, for its trained tokens.
"""

import math
from statistics import mean, stdev

# Advantages. A formula of one answer takes its reward and the rewards of its group.


def others(s, group):
    rest = list(group)
    rest.remove(s)
    return rest


def std(values):
    return stdev(values) if len(values) > 1 else 0.0


def centred(s, group):
    return s - mean(group)


def raw_alone(f):
    """The only answer to a prompt keeps its reward (verl, SkyRL: mean 0 and std 1 of a group of one)."""
    return lambda s, group: s if len(group) == 1 else f(s, group)


def scaled(eps):
    return lambda s, group: (s - mean(group)) / (std(group) + eps)


def verl_grpo(s, group):
    return s / (1 + 1e-6) if len(group) == 1 else scaled(1e-6)(s, group)


def leave_one_out(s, group):
    return s - mean(others(s, group)) if len(group) > 1 else 0.0


def nemo(s, group):
    scale = std(others(s, group)) if len(group) > 1 else 0.0
    return leave_one_out(s, group) / (scale + 1e-6) if scale > 0 else leave_one_out(s, group)


def whitened(values, with_n=False, eps=0.0):
    centre = mean(values)
    var = sum((v - centre) ** 2 for v in values) / (len(values) - (0 if with_n else 1))
    return [(v - centre) / math.sqrt(var + eps) for v in values]


def groups_of(b, values):
    return [[values[j] for j, g in enumerate(b.groups) if g == own] for own in b.groups]


def rows_of(b, values):
    return [[v] * n for v, n in zip(values, b.columns["length"].tolist(), strict=True)]


def by_answers(formula):
    def rows(b):
        return rows_of(b, [formula(s, g) for s, g in zip(b.rewards, groups_of(b, b.rewards), strict=True)])

    return rows


def by_tokens(formula, with_n=False):
    """The same, whitened over all trained tokens of the batch."""

    def rows(b):
        made = by_answers(formula)(b)
        flat = iter(whitened(sum(made, []), with_n))
        return [[next(flat) for _ in row] for row in made]

    return rows


def gdpo(formula, over_tokens=False):
    def rows(b):
        total = [0.0] * len(b.rewards)
        for part in b.columns["reward_parts"].T.tolist():
            total = [t + formula(s, g) for t, s, g in zip(total, part, groups_of(b, part), strict=True)]
        if not over_tokens:
            return rows_of(b, whitened(total))
        flat = iter(whitened(sum(rows_of(b, total), [])))
        return [[next(flat) for _ in row] for row in rows_of(b, total)]

    return rows


def gae(lam=1.0, with_n=False, white=True, adaptive=False):
    def rows(b):
        out = []
        for s, values in zip(b.rewards, b.trained("value"), strict=True):
            row, after, advantage = [], 0.0, 0.0
            rate = max(0.0, 1 - 1 / (0.05 * max(len(values), 1))) if adaptive else lam
            for t in reversed(range(len(values))):
                reward = s if t == len(values) - 1 else 0.0
                advantage = reward + after - values[t] + rate * advantage
                after = values[t]
                row.insert(0, advantage)
            out.append(row)
        if not white:
            return out
        flat = iter(whitened(sum(out, []), with_n))
        return [[next(flat) for _ in row] for row in out]

    return rows


def opo(b):
    lengths = b.columns["length"].tolist()
    out = []
    for i, own in enumerate(b.groups):
        peers = [j for j, g in enumerate(b.groups) if g == own]
        base = sum(lengths[j] * b.rewards[j] for j in peers) / sum(lengths[j] for j in peers)
        out.append(b.rewards[i] - base)
    return rows_of(b, out)


def gpg(b):
    scale = len(b.rewards) / sum(s != 0 for s in b.rewards)
    return by_answers(lambda s, group: scale * centred(s, group))(b)


def passk(s, group):
    first, second, *_ = [*sorted(group, reverse=True), max(group)]
    return (first - second) / (std(group) + 1e-6) if len(group) > 1 and s == first > second else 0.0


def optimal_token(b):
    pairs = zip(b.trained("old_logp"), b.trained("old_collision"), strict=True)
    energy = [[1 - 2 * math.exp(a) + c for a, c in zip(*row, strict=True)] for row in pairs]
    out = []
    for i, own in enumerate(b.groups):
        peers, row = [j for j, g in enumerate(b.groups) if g == own], []
        for t in range(len(energy[i])):
            there = [j for j in peers if len(energy[j]) > t]
            weight = {j: sum(energy[j][: t + 1]) for j in there}
            base = sum(b.rewards[j] * weight[j] for j in there) / (sum(weight.values()) + 1e-8)
            row.append(0.0 if len(peers) == 1 else b.rewards[i] - (base if len(there) > 1 else 0))
        out.append(row)
    return out


def max_rl(eps):
    return lambda s, group: (s - mean(group)) / (mean(group) + eps) if mean(group) > 0 else 0.0


def spiral(b):
    base, out = {}, []
    for s, agent in zip(b.rewards, b.columns["agent"].tolist(), strict=True):
        out.append(s - base.get(agent, 0.0))
        base[agent] = 0.95 * base.get(agent, 0.0) + 0.05 * s
    return rows_of(b, out)


def hierarchical(b):
    keys = list(zip(b.groups, b.columns["agent"].tolist(), strict=True))
    peers = [[s for s, k in zip(b.rewards, keys, strict=True) if k == own] for own in keys]
    return rows_of(b, [s - mean(p) for s, p in zip(b.rewards, peers, strict=True)])


def remax(b):
    greedy = b.columns["greedy_reward"].tolist()
    return rows_of(b, [s - g for s, g in zip(b.rewards, greedy, strict=True)])


def teacher(b):
    pairs = zip(b.trained("teacher_logp"), b.trained("old_logp"), strict=True)
    return [[t - o for t, o in zip(*row, strict=True)] for row in pairs]


def batch_mean(b):
    return rows_of(b, [s - mean(b.rewards) for s in b.rewards])
