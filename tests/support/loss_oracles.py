"""Every policy loss in plain Python: functions of one trajectory that return the losses of its tokens."""

import math
from types import SimpleNamespace

# An oracle gives the token losses of one trajectory. `row.logp` carries the gradient; `row.fixed` is a copy
# that does not: differentiating in `logp` alone gives the gradient with everything behind a stop-gradient
# held still.


def per_token(formula):
    def rows(row):
        names = list(vars(row))
        return [
            formula(SimpleNamespace(**{n: getattr(row, n)[t] for n in names})) for t in range(len(row.logp))
        ]

    return rows


def clip(x, low, high):
    return min(max(x, low), high)


def ppo(x, r, low=0.2, high=0.2):
    return max(-r * x.adv, -clip(r, 1 - low, 1 + high) * x.adv)


def ratio(x):
    return math.exp(x.logp - x.old_logp)


def fixed_ratio(x, before="old_logp"):
    return math.exp(x.fixed - getattr(x, before))


def mean(values):
    return sum(values) / len(values) if values else 0.0


@per_token
def ppo_clip(x):
    return ppo(x, ratio(x))


@per_token
def ppo_dual(x):
    return min(ppo(x, ratio(x)), -1.2 * x.adv) if x.adv < 0 else ppo(x, ratio(x))


def of_answer(formula):
    """A formula of (x, ratio) on the answer's geometric mean, whose gradient reaches each token by itself."""

    def rows(row):
        s = mean([f - o for f, o in zip(row.fixed, row.old_logp, strict=True)])
        tokens = zip(row.logp, row.fixed, row.adv, strict=True)
        return [
            formula(SimpleNamespace(logp=logp, adv=a, fixed=f, mean=s), math.exp(logp - f + s))
            for logp, f, a in tokens
        ]

    return rows


gspo = of_answer(lambda x, r: ppo(x, r, 0.05, 0.1))


def product_clip(row):
    """The loss of the answer, shared out evenly over its tokens."""
    whole = math.exp(sum(logp - o for logp, o in zip(row.logp, row.old_logp, strict=True)))
    return [ppo(SimpleNamespace(adv=mean(row.adv)), whole) / len(row.adv) for _ in row.adv]


def flash_reinforce(row):
    """Binary divergence of the engine from the policy, over the answer."""
    d = []
    for f, engine in zip(row.fixed, row.rollout_logp, strict=True):
        p, q = math.exp(engine), math.exp(f)
        d.append(p * math.log(p / q) + (1 - p) * math.log((1 - p + 1e-8) / (1 - q + 1e-8)))
    tokens = zip(row.logp, row.rollout_logp, row.adv, strict=True)
    return [-math.exp(logp - r) * a * (mean(d) <= 0.03) for logp, r, a in tokens]


def teacher_divergence(beta):
    """beta KL(t || m) + (1 - beta) KL(p || m) over a head and the rest; no gradient by the sampled token."""

    def kl(a, b):
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    @per_token
    def rows(x):
        t, p = ([math.exp(v) for v in head] for head in (x.teacher_head_logp, x.head_logp))
        t, p = ([*head, max(1 - sum(head), 1e-6)] for head in (t, p))
        if beta in (0, 1):
            return kl(p, t) if beta else kl(t, p)
        m = [beta * a + (1 - beta) * b for a, b in zip(t, p, strict=True)]
        return beta * kl(t, m) + (1 - beta) * kl(p, m)

    return rows


def score_centering(cap):
    """The correction by hand: the head's tokens have no gradient here, and log p_v is that of the policy."""

    @per_token
    def rows(x):
        q, p = [math.exp(v) for v in x.engine_head_logp], [math.exp(v) for v in x.head_logp]
        rho = max(1 - sum(q), 1e-6) / max(1 - sum(p), 1e-6)
        weight = min(math.exp(x.fixed - x.rollout_logp), cap) if cap else 1.0
        alpha = min(1.0, cap * rho) if cap else rho
        heads = zip(q, p, x.head_logp, strict=True)
        centre = sum(((min(b, cap * a) if cap else a) - alpha * b) * logp for a, b, logp in heads)
        return -x.adv * (weight * x.logp - centre)

    return rows


@per_token
def ipo(x):
    inside = -0.1 <= math.exp(x.fixed) - math.exp(x.old_logp) <= 0.15
    return -ratio(x) * x.adv * inside + 0.01 * (x.logp - x.old_logp) ** 2


def soft_gate(x, r):
    tau = 1.0 if x.adv > 0 else 1.05
    return -4 / tau / (1 + math.exp(-tau * (r - 1))) * x.adv


@per_token
def sapo(x):
    return soft_gate(x, ratio(x))


@per_token
def cispo(x):
    return -clip(fixed_ratio(x), 0.8, 1.3) * x.adv * x.logp


def gmpo(row):
    logs = [
        min(logp - o, 0.4) if a > 0 else max(logp - o, -0.4)
        for logp, o, a in zip(row.logp, row.old_logp, row.adv, strict=True)
    ]
    return [-math.exp(mean(logs)) * a for a in row.adv]


@per_token
def dppo_tv(x):
    change = math.exp(x.fixed) - math.exp(x.old_logp)
    inside = change <= 0.1 if x.adv > 0 else change >= -0.1
    return -x.adv * min(fixed_ratio(x), 20) * x.logp * inside + 0.01 * (x.logp - x.old_logp) ** 2


@per_token
def dppo_kl(x):
    p, q = math.exp(x.old_logp), math.exp(x.fixed)
    divergence = p * (x.old_logp - x.fixed) + (1 - p) * math.log((1 - p + 1e-8) / (1 - q + 1e-8))
    away = q > p if x.adv > 0 else q < p
    bound = 0.05 if x.adv > 0 else 0.02
    return 0.0 * x.logp if divergence > bound and away else -x.adv * min(fixed_ratio(x), 20) * x.logp


@per_token
def dro_token(x):
    return -(x.logp * x.adv - 0.25 * (x.logp - x.old_logp) ** 2)


def squared(weight):
    """-A sum of logp + weight (log ratio of the answer)^2, the square shared out evenly over its tokens."""

    def rows(row):
        moved = sum(logp - o for logp, o in zip(row.logp, row.old_logp, strict=True))
        share = weight * moved**2 / max(len(row.logp), 1)
        return [-a * logp + share for logp, a in zip(row.logp, row.adv, strict=True)]

    return rows


@per_token
def reinforce(x):
    return -x.adv * x.logp


def topr(row):
    whole = min(math.exp(sum(f - o for f, o in zip(row.fixed, row.old_logp, strict=True))), 1)
    return [-a * logp * (1 if a > 0 else whole) for logp, a in zip(row.logp, row.adv, strict=True)]


@per_token
def topr_token(x):
    return -x.adv * x.logp * (1 if x.adv > 0 else min(fixed_ratio(x), 1))


@per_token
def truncated_is(x):
    return -x.adv * x.logp * min(fixed_ratio(x), 1)


@per_token
def kimi_token(x):
    return -x.adv * x.logp + 0.05 * (x.logp - x.old_logp) ** 2


def vespo(row, before="old_logp"):
    w = clip(
        math.exp(sum(f - o for f, o in zip(row.fixed, getattr(row, before), strict=True))), 1e-8, math.exp(20)
    )
    out = []
    for logp, a in zip(row.logp, row.adv, strict=True):
        k, lam = (2, 3) if a >= 0 else (3, 2)
        out.append(-math.exp(lam) * w**k * math.exp(-lam * w) * a * logp)
    return out


@per_token
def two_sided(x):
    return max(-min(ratio(x), 1.5) * x.adv, -clip(ratio(x), 0.8, 1.2) * x.adv)


@per_token
def aspo(x):
    if x.adv <= 0:
        return ppo(x, ratio(x), 0.2, 0.28)
    moving = math.exp(x.logp - x.fixed) if fixed_ratio(x) <= 1.28 else 1.0
    return -min(1 / fixed_ratio(x), 1.1) * moving * x.adv


@per_token
def decoupled(x):
    return min(math.exp(x.old_logp - x.rollout_logp), 1.1) * ppo(x, ratio(x))


@per_token
def interpolated(x):
    near = x.rollout_logp + x.lag / (x.lag + 1) * (x.fixed - x.rollout_logp)
    return math.exp(near - x.rollout_logp) * ppo(x, math.exp(x.logp - near))


def opsm(row):
    away = mean([r - f for r, f in zip(row.rollout_logp, row.fixed, strict=True)])
    return [
        0.0 * loss if a < 0 and away > 0.02 else loss for loss, a in zip(ppo_clip(row), row.adv, strict=True)
    ]


def a_star_po(row):
    h = 0.5 * sum(logp - r for logp, r in zip(row.logp, row.ref_logp, strict=True))
    return [(h - mean(row.adv)) ** 2 / len(row.adv) for _ in row.adv]


def copg(row):
    h = sum(logp - r for logp, r in zip(row.logp, row.ref_logp, strict=True)) - mean(row.others_log_ratio)
    return [(mean(row.adv) - 0.5 * h) ** 2 / 2 / len(row.adv) for _ in row.adv]


@per_token
def clip_cov(x):
    return x.kept * ppo(x, ratio(x))


@per_token
def kl_cov(x):
    return -ratio(x) * x.adv + 2.0 * x.penalised * abs(x.logp - x.old_logp)


@per_token
def m2po(x):
    return -x.kept * math.exp(x.logp - x.rollout_logp) * x.adv


@per_token
def pf_ppo(x):
    return x.copies * ppo(x, ratio(x))


@per_token
def vapo(x):
    return ppo(x, ratio(x), 0.2, 0.28) - 0.1 * x.imitated * x.logp
