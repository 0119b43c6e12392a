"""Process groups beside the default one, made anew through one store."""

import socket
from pathlib import Path

import pytest
from gloo_ranks import GlooRanks
from swap_scenarios import join_beside_a_bound_default


@pytest.mark.parametrize("kind", ["file", "tcp"])
def test_groups_are_made_one_after_the_other_and_none_is_split_off_the_default(
    kind: str, tmp_path: Path
) -> None:
    """On a CPU torch raises if it tries to split one off a default group with a GPU."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"file://{tmp_path}/store" if kind == "file" else f"tcp://127.0.0.1:{port}"
    with GlooRanks(2) as ranks:
        assert ranks(join_beside_a_bound_default, address) == [([3, 3], "cuda:0")] * 2
