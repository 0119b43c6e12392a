"""Stretches of one layout, written by its ranks, become those of any other, bit for bit."""

from collections.abc import Iterator
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layout_values import held_by, megatron_layouts
from model_values import DENSE, LATENT, MIXTURES, hf_tensors, specs, tiny

from hybridrl.errors import CheckpointError
from hybridrl.layout.hf import HFLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.shard import Shard
from hybridrl.reshard import hf_files
from hybridrl.reshard.flat_ranges import FlatRange, Wanted
from hybridrl.reshard.rank_files import Kept, collect, file_name, fill, read_beside, write


def partition(
    layout: MegatronLayout, draw: np.random.Generator
) -> Iterator[tuple[int, str, Shard, int, int]]:
    """Each tensor's elements, split at random among the ranks that hold the same shard."""
    holders: dict[Shard, list[tuple[int, str]]] = {}
    for rank in range(layout.world_size):
        for name, shard in layout.shards(rank).items():
            holders.setdefault(shard, []).append((rank, name))
    for shard, who in holders.items():
        cuts = np.sort(draw.integers(0, prod(shard.shape) + 1, len(who) - 1))
        edges = [0, *cuts.tolist(), prod(shard.shape)]
        for (rank, name), (start, stop) in zip(who, pairwise(edges), strict=True):
            if start < stop:
                yield rank, name, shard, start, stop


def save(folder: Path, layout: MegatronLayout, ranks: list[dict[str, torch.Tensor]], seed: int = 0) -> None:
    kept: dict[int, list[Kept]] = {rank: [] for rank in range(layout.world_size)}
    for rank, name, _, start, stop in partition(layout, np.random.default_rng(seed)):
        flat_range = ranks[rank][name].flatten()[start:stop]
        kept[rank].append(Kept(name, start, {"weights": flat_range, "moment": -flat_range}))
    for rank, flat_ranges in kept.items():
        write(folder, "policy", rank, flat_ranges, {"random/state": torch.tensor([rank], dtype=torch.uint8)})


@st.composite
def two_layouts(draw: st.DrawFn) -> tuple[MegatronLayout, MegatronLayout]:
    spec = draw(specs(sorted({*DENSE, *MIXTURES, *LATENT})))
    return draw(megatron_layouts(spec)), draw(megatron_layouts(spec))


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layouts=two_layouts(), seed=st.integers(0, 99))
def test_any_layout_reads_what_any_other_wrote(tmp_path_factory, layouts, seed) -> None:
    folder, (old, new) = tmp_path_factory.mktemp("saved"), layouts
    save(folder, old, held_by(old), seed)
    expected = held_by(new)
    wanted, parts = [], []
    for rank, name, shard, start, stop in partition(new, np.random.default_rng(seed + 1)):
        tensors = {quantity: torch.zeros(stop - start) for quantity in ("weights", "moment")}
        wanted.append(Wanted(FlatRange(shard, start, stop), tensors))
        parts.append(expected[rank][name].flatten()[start:stop])
    fill(folder, "policy", old, wanted)
    for want, part in zip(wanted, parts, strict=True):
        assert torch.equal(want.tensors["weights"], part)
        assert torch.equal(want.tensors["moment"], -part)


def test_a_model_folder_is_one_more_layout(tmp_path: Path) -> None:
    spec = tiny("qwen3_moe", tied=True)
    layout, hf = MegatronLayout(spec, tp=2, pp=2, dp=2, ep=2, vpp=2), hf_tensors(spec)
    save(tmp_path, layout, held_by(layout))
    shards = HFLayout(spec).shards(0)
    found = {name: torch.zeros(shard.shape, dtype=torch.bfloat16) for name, shard in shards.items()}
    wanted = [
        Wanted(FlatRange.whole(shards[name]), {"weights": tensor.flatten()}) for name, tensor in found.items()
    ]
    fill(tmp_path, "policy", layout, wanted)
    assert found.keys() == hf.keys()
    assert all(torch.equal(tensor, hf[name].bfloat16()) for name, tensor in found.items())


def test_what_no_rank_kept_is_named(tmp_path: Path) -> None:
    layout = MegatronLayout(tiny(), dp=2)
    name = "decoder.final_layernorm.weight"
    for rank in range(2):
        write(tmp_path, "policy", rank, [Kept(name, rank, {"weights": torch.ones(1)})], {})
    shard = layout.shards(0)[name]
    for start, stop, whole in ((0, 2, True), (1, 3, False)):
        want = Wanted(FlatRange(shard, start, stop), {"weights": torch.zeros(stop - start)})
        if whole:
            fill(tmp_path, "policy", layout, [want])
            continue
        with pytest.raises(CheckpointError, match="lacks some of final_norm"):
            fill(tmp_path, "policy", layout, [want])


def test_a_part_is_complete_when_every_rank_has_left_its_mark(tmp_path: Path) -> None:
    layout = MegatronLayout(tiny(), tp=2)
    ranks = held_by(layout)
    assert collect(tmp_path, "policy", 2) is None
    save(tmp_path, layout, ranks)
    files = collect(tmp_path, "policy", 2)
    assert files is not None and sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    assert all(hf_files.checksum(tmp_path / name) == value for name, value in files.items())
    with (tmp_path / file_name("policy", 1)).open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"?")
    assert hf_files.checksum(tmp_path / file_name("policy", 1)) != files[file_name("policy", 1)]
    assert read_beside(tmp_path, "policy", 0, "random/")["state"].tolist() == [0]
