"""What Megatron builds of Transformer Engine's own modules: `python te_built.py FOLDER FOUND.json`.

FOLDER holds a model per kind. Each is built as a trainer rank on a GPU builds it, as the first and the last
rank of several parallel layouts; the other ranks and the GPU are not there.
"""

import te_extension  # noqa: F401  # isort: skip  # before Megatron looks for Transformer Engine
import hybridrl.trainer.megatron  # noqa: F401  # isort: skip  # makes Megatron importable on a CPU

import contextlib
import inspect
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import trainer_scenarios as scenarios
import trainer_values as values
from megatron.core import parallel_state
from megatron.core.fp8_utils import get_fp8_recipe
from te_cases import FP8, KINDS, LAYOUTS, PRECISIONS, RECOMPUTE, key, parallel_of
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformer_engine.pytorch.attention import DotProductAttention  # pyright: ignore[reportMissingImports]

from hybridrl.config.training import TrainParallel
from hybridrl.hosts import cpu
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.trainer.megatron import backend, cuda_layers
from hybridrl.trainer.megatron.architecture import transformer_config
from hybridrl.trainer.megatron.model import build, named_parameters, policy_model
from hybridrl.trainer.packing import PackedBatch
from hybridrl.trainer.places import TokenPartition
from hybridrl.trainer.setup import PolicySetup

new_group: Any = dist.new_group


@contextlib.contextmanager
def others_of(parallel: TrainParallel, rank: int = 0) -> Iterator[None]:
    """Process groups of ranks of which only this one is there."""
    backend.join = lambda setup, device: None
    backend._device = lambda setup: torch.device("cuda", 0)
    dist.new_group = lambda **options: new_group(**options | {"backend": "fake"})
    dist.init_process_group("fake", rank=rank, world_size=parallel.num_ranks, store=FakeStore())
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


@contextlib.contextmanager
def gpu() -> Iterator[None]:
    """Tensors for a GPU are made on the CPU, and Transformer Engine is told that there is a GPU."""
    with cpu.scope():
        torch.cuda.is_available = lambda: True
        try:
            yield
        finally:
            torch.cuda.is_available = lambda: False


def setup_of(folder: Path, parallel: TrainParallel, **actor: Any) -> PolicySetup:
    changed = values.make_actor().model_copy(update=actor)
    return values.make_setup(0, "", folder, parallel, actor=changed, device=0)


def stage_of(setup: PolicySetup) -> list[Any]:
    config: Any = transformer_config(setup, torch.device("cuda", 0))
    config.use_cpu_initialization = True
    layout = MegatronLayout.of(setup.model, on_gpu=True, **setup.parallel.sizes)
    parts = cuda_layers.TRANSFORMER_ENGINES
    return build(config, setup.model, layout.padded_vocab, torch.device("cpu"), parts=parts)


def parameters(folder: Path, parallel: TrainParallel, rank: int, precision: str) -> dict[str, Any]:
    """Dtype and shape of every parameter of a rank, by its name in the whole model."""
    with others_of(parallel, rank), gpu():
        setup = setup_of(folder, parallel, precision=precision)
        backend.start(setup)
        weights = named_parameters(stage_of(setup))
        return {name: [str(weight.dtype), list(weight.shape)] for name, weight in weights}


def recipe(folder: Path, fp8: str, recompute: str, bf16_layers: int) -> str:
    """The class of Transformer Engine's recipe that the model is built with."""
    parallel = TrainParallel(dp=1)
    with others_of(parallel), gpu():
        options = {"fp8": fp8, "recompute": recompute, "bf16_layers": bf16_layers}
        setup = setup_of(folder, parallel, **options)
        backend.start(setup)
        config = policy_model(stage_of(setup)).config
        return type(get_fp8_recipe(config)).__name__ if config.fp8 else "none"


def attention(folder: Path) -> dict[str, Any]:
    """Arguments with which Transformer Engine's attention is called, for a batch of packed sequences."""
    seen: dict[str, Any] = {}

    def forward(self: Any, query: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        seen.update(bound.bind(self, query, *args, **options).arguments)
        return query.flatten(1)

    plain = DotProductAttention.forward
    bound, DotProductAttention.forward = inspect.signature(plain), forward
    parallel = TrainParallel(dp=1)
    with others_of(parallel), gpu():
        setup = setup_of(folder, parallel)
        backend.start(setup)
        layer = policy_model(stage_of(setup)).decoder.layers[0].self_attention.core_attention
        batch = values.make_batch([scenarios.split(0, 1, (6,))])
        microbatch = PackedBatch(batch, cpu.CPU, TokenPartition()).microbatch([0, 1, 2])
        assert microbatch is not None
        heads = torch.zeros(len(microbatch.token_T), 1, 4, 16)
        layer(heads, heads[:, :, :2], heads[:, :, :2], None, packed_seq_params=microbatch.packing)
    DotProductAttention.forward = plain
    edges = [name for name in seen if name.startswith("cu_seqlens")]
    named = {name: seen[name] for name in ("qkv_format", "attn_mask_type", "max_seqlen_q")}
    return named | {
        "edges": {name: str(seen[name].dtype) for name in edges},
        "one tensor": len({id(seen[name]) for name in edges}) == 1,
        "longest": int(microbatch.packing.edge_S.diff().max()),
    }


def main(folder: Path, out: Path) -> None:
    built = {}
    for kind, layout, precision in itertools.product(KINDS, LAYOUTS, PRECISIONS):
        parallel = parallel_of(folder / kind, layout)
        for rank in sorted({0, parallel.num_ranks - 1}):
            built[key(kind, layout, rank, precision)] = parameters(folder / kind, parallel, rank, precision)
    moe = folder / "qwen3_moe"
    recipes = [(case, recipe(moe, *case)) for case in itertools.product(FP8, RECOMPUTE, (0, 1))]
    out.write_text(json.dumps({"parameters": built, "recipes": recipes, "attention": attention(moe)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
