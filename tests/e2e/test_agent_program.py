"""The recipe of a program as the agent: lookup is learnt behind an endpoint of OpenAI's form."""

from pathlib import Path

import pytest
from recipe_runs import ROOT, last, launched


@pytest.mark.slow
def test_a_program_with_openais_client_trains_the_policy_to_use_its_tool(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")  # it is started in the folder above configs
    metrics, _ = launched(tmp_path, "configs/agent_program.yaml", "run.seed=21")
    assert last(metrics, "val-aux/lookup/called/mean_at_1") >= 0.95
    assert last(metrics, "val-aux/lookup/solved/mean_at_1") >= 0.8
