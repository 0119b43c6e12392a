"""A number and its noun."""

import pytest

from hybridrl.wording import counted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((1, "prompt"), "1 prompt"),
        ((2, "prompt"), "2 prompts"),
        ((0, "prompt"), "0 prompts"),
        ((1, "trajectory", "trajectories"), "1 trajectory"),
        ((2, "trajectory", "trajectories"), "2 trajectories"),
        ((1024, "token", "", ","), "1,024 tokens"),
        ((1024, "token"), "1024 tokens"),
    ],
)
def test_they_agree(given: tuple, said: str) -> None:
    assert counted(*given) == said
