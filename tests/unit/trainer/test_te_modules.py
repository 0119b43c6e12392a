"""Transformer Engine's own modules, of the release on GPUs, are what our layout for GPUs says."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import te_cases
from gpu_packages import TRANSFORMER_ENGINE
from te_cases import KINDS, LAYOUTS, PRECISIONS

from hybridrl.layout.megatron import MegatronLayout
from hybridrl.models.spec import read

pytestmark = pytest.mark.skipif(
    not TRANSFORMER_ENGINE.exists(), reason="needs the environment of Python 3.12: make test-312"
)
SCRIPT = Path(te_cases.__file__).with_name("te_built.py")
DTYPES = {"bf16": "torch.bfloat16", "fp32": "torch.float32"}
RECIPES = {
    "none": "none",
    "tensorwise": "Float8CurrentScaling",
    "blockwise": "Float8BlockScaling",
    "mxfp8": "MXFP8BlockScaling",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    te_cases.make_models(folder)
    return folder


@pytest.fixture(scope="module")
def built(folder: Path) -> dict[str, Any]:
    """Built in a process of its own, where Transformer Engine is installed."""
    out = folder / "built.json"
    path = os.pathsep.join([str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, SCRIPT, folder, out],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_names_dtypes_and_shapes_equal_the_layout(kind: str, precision: str, folder, built) -> None:
    spec = read(folder / kind)
    for name in LAYOUTS:
        parallel = te_cases.parallel_of(folder / kind, name)
        layout = MegatronLayout.of(spec, on_gpu=True, **parallel.sizes)
        for rank in {0, parallel.num_ranks - 1}:
            expected = {
                name: [DTYPES["fp32" if name.endswith("expert_bias") else precision], list(shard.shape)]
                for name, shard in layout.shards(rank).items()
            }
            assert built["parameters"][te_cases.key(kind, name, rank, precision)] == expected


def test_every_fp8_recipe_is_accepted_and_is_the_one_named(built) -> None:
    assert len(built["recipes"]) == 24  # with each way to recompute, with and without layers in bf16
    for (fp8, *_), recipe in built["recipes"]:
        assert recipe == RECIPES[fp8]


def test_attention_is_called_for_packed_sequences(built) -> None:
    found = built["attention"]
    assert (found["qkv_format"], found["attn_mask_type"]) == ("thd", "padding_causal")
    assert set(found["edges"]) == {f"cu_seqlens_{of}{end}" for of in ("q", "kv") for end in ("", "_padded")}
    assert set(found["edges"].values()) == {"torch.int32"}
    assert found["max_seqlen_q"] == found["longest"]
    assert found[
        "one tensor"
    ]  # else Transformer Engine sees padding between sequences, without FlashAttention 2
