"""What several engines did, added up."""

from hybridrl.rollout.usage import total
from hybridrl.types import Usage


def test_seconds_and_tokens_add_up_and_the_largest_error_counts() -> None:
    first = Usage(generating_s=1.0, idle_s=2.0, sampled_tokens=3, kept_cache_error=0.5)
    second = Usage(generating_s=4.0, paused_s=0.5, sampled_tokens=5, aborted_tokens=2, kept_cache_error=0.25)
    assert total([first, second, Usage(recomputed_tokens=7)]) == Usage(
        generating_s=5.0,
        paused_s=0.5,
        idle_s=2.0,
        sampled_tokens=8,
        aborted_tokens=2,
        recomputed_tokens=7,
        kept_cache_error=0.5,
    )
    assert total([Usage()]).kept_cache_error is None
