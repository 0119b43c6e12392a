"""Names and shapes are those of the modules that Megatron builds, on every rank."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from model_values import tiny

from hybridrl.layout.megatron import MegatronLayout

CASES = [
    ({"family": "llama", "tied": True}, {"tp": 2, "pp": 2, "dp": 2}),
    ({"family": "qwen2"}, {"tp": 2, "cp": 2}),
    ({"family": "qwen3", "num_kv_heads": 1, "head_dim": 4}, {"tp": 4}),
    ({"family": "mixtral"}, {"tp": 2, "etp": 2, "ep": 2, "dp": 2}),
    ({"family": "qwen3_moe", "first_moe_layer": 1}, {"tp": 2, "pp": 2, "ep": 4, "dp": 2}),
    ({"family": "deepseek_v2", "q_lora_rank": 0}, {"tp": 2, "ep": 2}),
    ({"family": "deepseek_v3", "first_moe_layer": 1}, {"tp": 4, "pp": 2, "vpp": 2, "ep": 2, "etp": 2}),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Name -> shape of every rank of every case, by Megatron."""
    out = tmp_path_factory.mktemp("shapes") / "out.json"
    program = Path(__file__).parents[2] / "support" / "megatron_shapes.py"
    cases = [json.dumps({"model": model, "sizes": sizes}) for model, sizes in CASES]
    subprocess.run([sys.executable, str(program), str(out), *cases], check=True, timeout=300)
    return json.loads(out.read_text())


@pytest.mark.parametrize("case", range(len(CASES)))
def test_ranks_hold_what_megatron_builds(built, case):
    model, sizes = CASES[case]
    layout = MegatronLayout(tiny(**model), **sizes)
    for rank, theirs in enumerate(built[case]):
        ours = {name: list(shard.shape) for name, shard in layout.shards(rank).items()}
        assert ours == theirs, rank
