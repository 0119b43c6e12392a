"""A loss that asks for the engine's likeliest tokens is refused where none can give so many."""

import sys
from pathlib import Path

import pytest

from hybridrl.config.load import load
from hybridrl.hosts.interpreter import Interpreter
from hybridrl.hosts.machine import GIB, Machine
from hybridrl.launch.verdict import SCOPES, verdict
from hybridrl.rollout.vllm import kind

CONFIGS = Path(__file__).parents[3] / "configs"
BARE = Machine(2, 64 * GIB, 64 * GIB, 8 * GIB, ())


@pytest.fixture(autouse=True)
def vllm_of_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that vLLM is in may be of another Python, which is refused before all else."""
    found = Interpreter(sys.version_info[:3], {"vllm": "99.0"})
    monkeypatch.setattr(kind, "inspect", lambda python: found)


def said(config: str, *overrides: str) -> str:
    loaded = load(CONFIGS / config, overrides)
    found = {" ".join(map(str, verdict(loaded, scope, BARE).errors)) for scope in SCOPES.values()}
    assert len(found) == 1, found
    return found.pop()


@pytest.mark.parametrize(("head_tokens", "message"), [(0, "head_tokens = 0: at least one"), (16, "")])
def test_as_many_tokens_as_there_are(head_tokens: int, message: str) -> None:
    errors = said("quickstart.yaml", f"algorithm.loss={{name: score_centering, head_tokens: {head_tokens}}}")
    assert message in errors and bool(message) == bool(errors)


def test_more_tokens_than_the_vocabulary_has() -> None:
    errors = said("quickstart.yaml", "algorithm.loss=score_centering")
    assert "head_tokens = 20 exceeds the vocabulary of 16" in errors


def test_an_engine_that_reports_the_sampled_token_only() -> None:
    errors = said("quickstart_vllm.yaml", "algorithm.loss={name: score_centering, head_tokens: 4}")
    assert "needs the likeliest tokens of the engine; rollout.engine = vllm" in errors


TAUGHT = "algorithm={{preset: opsd_jsd, hint: {{field: answer, max_tokens: 8}}, loss: {{head_tokens: {}}}}}"


def test_a_teacher_may_sit_beside_an_engine_that_reports_the_sampled_token_only() -> None:
    for count in (16, 64):  # more than the vocabulary are all of it
        assert said("quickstart_vllm.yaml", TAUGHT.format(count)) == ""


def test_dedicated_ranks_do_not_return_the_heads_of_a_teacher() -> None:
    errors = said("quickstart.yaml", TAUGHT.format(4), "reference.parallel={dp: 1}")
    assert "the ranks of reference.parallel return one number a token" in errors
