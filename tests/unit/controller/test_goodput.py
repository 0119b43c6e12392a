"""The shares of the engines' time sum to 1 whatever happened, and tokens are counted once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridrl.batch import Batch, TokenBlock
from hybridrl.controller.goodput import FATES, Goodput, episode_metrics, shares
from hybridrl.types import Group, Prompt, Trajectory, Usage

SECONDS = st.floats(0, 1e4)


@given(
    st.builds(Usage, generating_s=SECONDS, paused_s=SECONDS, idle_s=SECONDS, recomputing_s=SECONDS),
    st.dictionaries(st.sampled_from(FATES), st.integers(0, 10**9)),
    st.floats(0, 1),
)
def test_shares_sum_to_one(usage: Usage, step: dict[str, int], waiting: float) -> None:
    usage = Usage(
        generating_s=usage.generating_s,
        paused_s=usage.paused_s,
        idle_s=usage.idle_s,
        recomputing_s=min(usage.recomputing_s, usage.generating_s),
    )
    found = {name: share for name, share in shares(step, usage, waiting).items() if "goodput/" in name}
    assert all(share >= 0 for share in found.values())
    if usage.generating_s + usage.paused_s + usage.idle_s:
        assert sum(found.values()) == pytest.approx(1)


def group(rewards, tokens: int, *, index: int, version: int = 1) -> Group:
    count = len(rewards)
    block = TokenBlock.from_answers(
        [(1,)] * count, [(2,) * tokens] * count, [(0.0,) * tokens] * count, version
    )
    members = [Trajectory(i, 1, tokens, tokens, "stop", version, r) for i, r in enumerate(rewards)]
    return Group(Prompt(f"train/{index}", (1,), {}), members, block, index=index)


def test_what_became_of_the_tokens_of_a_step() -> None:
    mixed = group([0.0, 1.0], 10, index=0)
    flat = group([1.0, 1.0], 7, index=1)
    old = group([0.0, 1.0], 4, index=2)
    old.trajectories[0].version, old.trajectories[0].spans = 0, ((0, 3), (1, 1))
    batch = Batch.pack(3, [mixed, flat, old], oldest=1)
    batch.advantage_N = np.array([-1, 1, 0, 0, -1, 1], np.float32)
    batch.dropped_N = np.array([True, False, False, False, False, False])
    goodput = Goodput()
    goodput.train(batch)
    goodput.lose([group([0.0], 5, index=3)], "flat")
    metrics = goodput.report(Usage(generating_s=1.0, sampled_tokens=100, aborted_tokens=6))
    counts = {fate: metrics[f"rollout/tokens/{fate}"] for fate in FATES}
    assert counts == {
        "with_gradient": 10 + 1 + 4,
        "no_gradient": 10 + 14,
        "stale": 3,
        "flat": 5,
        "aborted": 6,
    }
    assert metrics["rollout/tokens/in_flight"] == 100 - sum(counts.values())
    later = goodput.report(Usage(generating_s=1.0))
    assert later["goodput/in_flight"] == 1.0 and later["rollout/tokens/in_flight"] == 100 - sum(
        counts.values()
    )


def test_what_episodes_counted_becomes_shares_and_means() -> None:
    sums = {
        "cached": 90.0,
        "cacheable": 100.0,
        "episodes/retried": 2.0,
        "environment/guess/episodes": 4.0,
        "environment/guess/solved": 3.0,
        "tool/a/b/calls": 5.0,
        "tool/a/b/seconds": 10.0,
        "tool/a/b/errors": 2.0,
        "tool/a/b/arguments": 2.0,
        "tool/idle/calls": 1.0,
    }
    assert episode_metrics(sums) == {
        "rollout/cached_share": 0.9,
        "episode/retried": 2.0,
        "environment/guess/solved": 0.75,
        "tool/a/b/calls": 5.0,
        "tool/a/b/time_s": 2.0,
        "tool/a/b/errors": 0.4,
        "tool/a/b/errors/arguments": 0.4,
        "tool/idle/calls": 1.0,
        "tool/idle/errors": 0.0,
        "tool/idle/time_s": 0.0,
    }
    assert episode_metrics({}) == {}
