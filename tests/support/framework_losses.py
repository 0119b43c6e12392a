"""The policy losses of other frameworks in plain Python: functions of one answer that return the losses of
its tokens.
"""

import math
from statistics import mean

# Policy losses of one answer: x.logp, x.old (before the update), x.mu (engine), x.a (advantages).


def clip(v, low, high):
    return min(max(v, low), high)


def token(f, since="old"):
    def rows(x):
        tokens = zip(x.logp, getattr(x, since), x.a, strict=True)
        return [f(math.exp(logp - o), logp, a) for logp, o, a in tokens]

    return rows


def surrogate(r, a, low, high, dual=None):
    loss = max(-r * a, -clip(r, 1 - low, 1 + high) * a)
    return min(loss, -dual * a) if dual and a < 0 else loss


def ppo(low=0.2, high=0.2, dual=None):
    return token(lambda r, logp, a: surrogate(r, a, low, high, dual))


def geometric(x):
    return math.exp(mean(p - o for p, o in zip(x.logp, x.old, strict=True))) if x.logp else 1.0


def sequence_ppo(low, high):
    return lambda x: [surrogate(geometric(x), a, low, high) for a in x.a]


def product(low, high):
    def rows(x):
        r = math.exp(sum(p - o for p, o in zip(x.logp, x.old, strict=True)))
        return [surrogate(r, mean(x.a), low, high) / len(x.a) for _ in x.a]

    return rows


def cispo(low, high, zero=False, since="old"):
    def f(r, logp, a):
        w = clip(r, low, high)
        return -(0.0 if zero and w != r else w) * a * logp

    return token(f, since)


def gate(r, logp, a):
    tau = 1.0 if a > 0 else 1.05
    return -4 / tau / (1 + math.exp(-tau * (r - 1))) * a


def gmpo(x):
    logs = [
        min(p - o, 0.4) if a > 0 else max(p - o, -0.4) for p, o, a in zip(x.logp, x.old, x.a, strict=True)
    ]
    return [-math.exp(mean(logs)) * a for a in x.a]


def region(inside, drift=0.0, bound=None, since="old"):
    """The gradient's form: -A min(r, bound) logp with r held still has the value of this loss."""

    def rows(x):
        out = []
        for logp, o, a in zip(x.logp, getattr(x, since), x.a, strict=True):
            r = math.exp(logp - o)
            keep = inside(math.exp(logp), math.exp(o), a)
            value = -a * (r if bound is None else min(r, bound) * logp) * keep
            out.append(value + drift * (logp - o) ** 2)
        return out

    return rows


def by_sign(low, high):
    return lambda p, q, a: p - q <= high if a > 0 else p - q >= -low


def binary(p, q):
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def by_divergence(bound):
    return lambda p, q, a: binary(q, p) <= bound or (p < q if a > 0 else p > q)


def reinforce(x):
    return [-a * logp for logp, a in zip(x.logp, x.a, strict=True)]


def vespo(x):
    w = clip(math.exp(sum(p - m for p, m in zip(x.logp, x.mu, strict=True))), 1e-8, math.exp(20))
    powers = [(2, 3) if a >= 0 else (3, 2) for a in x.a]
    rows = zip(powers, x.a, x.logp, strict=True)
    return [-math.exp(lam) * w**k * math.exp(-lam * w) * a * logp for (k, lam), a, logp in rows]


def flash(x):
    tokens = list(zip(x.logp, x.mu, x.a, strict=True))
    keep = mean(binary(math.exp(m), math.exp(p)) for p, m, _ in tokens) <= 1e-3 if tokens else 0
    return [-math.exp(p - m) * a * keep for p, m, a in tokens]


def stale(loss, low=0.0, high=5.0):
    """Times old / mu, 0 outside the bounds."""

    def rows(x):
        ratios = [math.exp(o - m) for o, m in zip(x.old, x.mu, strict=True)]
        return [v * w * (low <= w <= high) for v, w in zip(loss(x), ratios, strict=True)]

    return rows
