"""The certificate holds for what is invariant, and names the axis for what is not."""

import json
from pathlib import Path

import pytest

from hybridrl import cli
from hybridrl.config.load import load
from hybridrl.errors import UserCodeError, UserError
from hybridrl.verify.certificate import Request, certify

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def test_a_local_denominator_is_found_and_blamed_on_the_split() -> None:
    heard: list[str] = []
    loaded = load(CONFIG, ["algorithm.loss=verify_losses:LocalMean"])
    found = certify(loaded, Request(["dp2"]), heard.append)
    assert not found.holds
    assert found.blamed == ["microbatches", "packing"]
    by_name = {finding.row.name: finding for finding in found.findings}
    assert not by_name["dp2"].failed
    worst = by_name["dp2, packed"].difference
    assert worst is not None and worst.gradient > 0.1
    assert any("dp2, packed" in line and "DIFFERS" in line for line in heard)


def test_what_is_wrong_before_any_row_is_refused() -> None:
    loaded = load(CONFIG, ["algorithm.loss=verify_losses:Raises"])
    with pytest.raises(UserCodeError, match="a mistake of the user's, at .*verify_losses.py"):
        certify(loaded, Request(["tp2"]), print)
    with pytest.raises(UserError, match="no layout 'tp'"):
        certify(loaded, Request(["tp"]), print)
    with pytest.raises(UserError, match="policy_losses has no 'ppo_clap'"):
        certify(load(CONFIG, ["algorithm.loss=ppo_clap"]), Request(["tp2"]), print)


MODELS = {
    "dense": [],
    "gspo": ["algorithm.preset=gspo"],
    "reference policy": ["algorithm.kl.coefficient=0.1"],
    "critic": ["algorithm.estimator=gae"],
    "experts": ["model.path=Qwen/Qwen3-30B-A3B", "model.make=null"],
    "latent attention": ["model.path=deepseek-ai/DeepSeek-V3", "model.make=null"],
    "soft caps and windows": ["model.path=google/gemma-2-2b", "model.make=null"],
}
"""Overrides of the quickstart; no model is downloaded, its published sizes say what it is."""


@pytest.mark.slow
@pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS)
def test_loss_and_gradients_are_invariant(overrides, capsys) -> None:
    code = cli.main(["verify", str(CONFIG), *overrides, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0, found
    assert found["holds"] and found["blamed"] == []
    shown = {axis for row in found["rows"] if "gradient" in row for axis in row["axes"]}
    assert shown >= {"microbatches", "packing", "order", "recompute", "tp", "sp", "pp", "vpp", "cp", "dp"}
    assert ("ep" in shown) == found["model"].startswith(("qwen3_moe", "deepseek"))


@pytest.mark.slow
def test_options_that_only_the_own_backend_has_leave_the_rows_of_others(capsys) -> None:
    options = ["actor.gather=once", "actor.keep_on_host=all", "--layouts", "dp2,megatron:dp2", "--json"]
    code = cli.main(["verify", str(CONFIG.with_name("quickstart_fsdp.yaml")), *options])
    found = json.loads(capsys.readouterr().out)
    assert code == 0 and found["holds"], found
    assert all("gradient" in row for row in found["rows"] if "dp2" in row["row"]), found["rows"]
