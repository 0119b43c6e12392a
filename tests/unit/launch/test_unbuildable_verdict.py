"""A family that a backend lacks is refused by every command, with the same reason."""

from pathlib import Path

import pytest

from hybridrl.config.load import load
from hybridrl.errors import ModelError
from hybridrl.hosts.machine import GIB, Machine
from hybridrl.launch.verdict import SCOPES, verdict
from hybridrl.verify.certificate import Request, certify

CONFIG = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
BARE = Machine(2, 64 * GIB, 64 * GIB, 8 * GIB, ())
REASONS = {
    "google/gemma-2-2b": "this model is gemma2",
    "deepseek-ai/DeepSeek-V3": "this model is deepseek_v3",
}


@pytest.mark.parametrize(("model", "reason"), REASONS.items())
def test_a_family_that_fsdp_lacks(model: str, reason: str) -> None:
    """No model is downloaded: its published sizes say what it is."""
    loaded = load(
        CONFIG, [f"model={model}", "actor={backend: fsdp}", "cluster={nodes: 64, gpus_per_node: 8}"]
    )
    for name, scope in SCOPES.items():
        found = [f"{error.what} {error.fix}" for error in verdict(loaded, scope, BARE).errors]
        said = [error for error in found if reason in error]
        assert len(said) == 1 and "remove actor.backend" in said[0], (name, found)
    with pytest.raises(ModelError, match=reason):
        certify(loaded, Request(["dp2"]), print)
