"""The picture of the planner's terms in the documentation is the one that its script draws."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

PICTURE = Path(__file__).parents[3] / "docs/pictures/resharding.svg"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("resharding_picture", PICTURE.with_suffix(".py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_file_is_what_the_script_draws(script: ModuleType) -> None:
    assert PICTURE.read_text("utf-8") == script.svg(), f"run python docs/pictures/{PICTURE.stem}.py"


def test_the_replicas_send_equal_shares_of_what_both_engine_ranks_need(script: ModuleType) -> None:
    sent = dict.fromkeys(script.SENDERS, 0)
    for rank in range(2):
        for transfer in script._found_transfers(rank):
            sent[transfer.source_rank] += transfer.elements
    assert set(sent.values()) == {2 * script.FFN // 2 * script.HIDDEN // 3}
