"""A checkpoint belongs to the model, not to the ranks that made it: any other cut of them goes on from it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_models as models
import trainer_scenarios as scenarios
import trainer_values as values
from trainer_ranks import on_ranks

from hybridrl.config.training import TrainParallel
from hybridrl.layout.hf import HFLayout
from hybridrl.reshard.flat_ranges import FlatRange, Wanted
from hybridrl.reshard.rank_files import fill
from hybridrl.trainer import committed

SLOW = pytest.mark.slow
TIED = TrainParallel(tp=2, dp=1)
CASES: dict[str, tuple[str, TrainParallel, dict[int, dict[str, TrainParallel]]]] = {
    "tied": (
        "deep",
        TIED,
        {
            2: {
                "same": TIED,
                "pp2": TrainParallel(pp=2, dp=1),
                "vpp2": TrainParallel(pp=2, vpp=2, dp=1),
                "dp2": TrainParallel(dp=2),
            },
            1: {"alone": TrainParallel(dp=1)},
        },
    ),
    "tied_pipeline": (
        "deep",
        TrainParallel(pp=2, vpp=2, dp=1),
        {
            2: {
                "uneven": TrainParallel(pp=2, stage_layers=(1, 3), dp=1),
                "cp2": TrainParallel(cp=2, dp=1),
                "tp2": TIED,
            },
        },
    ),
    "experts": (
        "qwen3_moe",
        TrainParallel(ep=2, dp=2),
        {
            1: {"ep1": TrainParallel(dp=1)},
            2: {"tp2ep2": TrainParallel(tp=2, ep=2, dp=1), "etp2": TrainParallel(tp=2, etp=2, dp=1)},
        },
    ),
    "latent": (
        "deepseek_v3",
        TrainParallel(tp=2, ep=2, dp=2, pp=1),
        {2: {"pp2": TrainParallel(pp=2, dp=1), "dp2": TrainParallel(dp=2)}},
    ),
}
"""Model, how the ranks were cut that saved, and by world size those that go on."""


@pytest.fixture(
    scope="module",
    params=["tied", *(pytest.param(name, marks=SLOW) for name in ("tied_pipeline", "experts", "latent"))],
)
def case(request, tmp_path_factory) -> dict[str, Any]:
    kind, shape, others = CASES[request.param]
    folder = tmp_path_factory.mktemp("case")
    make = values.make_model if kind in values.FAMILIES else models.make_model
    model, saved = make(folder, kind), folder / "saved"
    through = on_ranks(shape.num_ranks, scenarios.save_between, model, shape, saved)
    found = {}
    for world_size, shapes in others.items():
        ranks = on_ranks(world_size, scenarios.resume_cut, model, shapes, saved, folder)
        found |= {name: [rank[name] for rank in ranks] for name in shapes}
    return {"folder": folder, "through": through[0], "found": found}


def canonical(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every weight and moment of the policy, under the names of a model folder."""
    layout = committed.layout(committed.read(checkpoint), "policy")
    shards = HFLayout(layout.spec).shards(0)
    trained = ["weights", "exp_avg", "exp_avg_sq"]
    tensors = {
        name: {q: torch.full(shard.shape, torch.nan) for q in trained[: 1 if "e_score" in name else 3]}
        for name, shard in shards.items()
    }
    wanted = [
        Wanted(FlatRange.whole(shards[name]), {q: tensor.flatten() for q, tensor in of_name.items()})
        for name, of_name in tensors.items()
    ]
    fill(checkpoint, "policy", layout, wanted)
    return {f"{q}/{name}": tensor for name, of_name in tensors.items() for q, tensor in of_name.items()}


def test_ranks_that_are_cut_in_another_way_hold_the_same_bit_for_bit(case) -> None:
    before = canonical(case["folder"] / "saved")
    trained = [bool((tensor != 0).any()) for tensor in before.values()]
    assert sum(trained) > 0.8 * len(trained)  # an expert that no token chose has moments of 0
    for name in case["found"]:
        after = canonical(case["folder"] / name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before), name


def test_losses_go_on_as_if_nothing_had_changed(case) -> None:
    for name, ranks in case["found"].items():
        for rank in ranks:
            for report, expected in zip(rank["reports"], case["through"], strict=True):
                for key in ("loss", "grad_norm", "lr"):
                    assert report[key] == pytest.approx(expected[key], rel=2e-5), (name, key)
                if name == "same":
                    assert report == expected


def test_random_numbers_begin_anew_from_seed_and_step_and_a_person_is_told(case) -> None:
    begun = []
    for name, ranks in case["found"].items():
        for rank in ranks:
            numbers, again = rank["numbers"]
            assert numbers == again
            assert bool(rank["notes"]) == (name != "same")
        if name != "same":
            begun.append(ranks[0]["numbers"][0])
            assert "the checkpoint was made with tp" in ranks[0]["notes"][0]
    assert all(numbers == begun[0] for numbers in begun)


def test_the_record_says_what_the_checkpoint_holds(case) -> None:
    record = committed.read(case["folder"] / "saved")
    layout = committed.layout(record, "policy")
    policy = record["parts"]["policy"]
    held = canonical(case["folder"] / "saved")
    assert policy["parameters"] == sum(t.numel() for name, t in held.items() if name.startswith("weights/"))
    assert policy["progress"]["num_steps_done"] == 2 and policy["dtype"] == "float32"
    assert record["versions"].keys() == {"hybridrl", "torch", "megatron-core"}
    assert len(record["files"]) == layout.world_size
    assert all(file["crc32"] is not None for file in record["files"].values())
