"""Adapters on every layout are those of plain torch; what they are merged into is the policy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trainer_scenarios as scenarios
import trainer_values as values
from trainer_ranks import on_ranks

from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.training import ActorConfig, LoraConfig, TrainParallel
from hybridrl.layout.adapters import AdapterLayout

TOLERANCE = 2e-6
"""Of losses and gradient norms, relative; of weights, absolute: fp32 sums in another order."""

STEPS = 3
SHAPES = {
    1: {"alone": TrainParallel(dp=1)},
    2: {
        "tp": TrainParallel(tp=2, dp=1, sp=False),
        "tp_sp": TrainParallel(tp=2, dp=1, sp=True),
        "pp": TrainParallel(pp=2, dp=1),
        "dp": TrainParallel(dp=2),
        "cp": TrainParallel(cp=2, dp=1),
    },
}
ALL = [name for shapes in SHAPES.values() for name in shapes]


def make_actor(targets: Any = ("qkv", "proj", "fc1", "fc2"), **options: Any) -> ActorConfig:
    lora = LoraConfig(rank=4, alpha=8.0, targets=targets)
    return values.make_actor(**options).model_copy(update={"lora": lora})


def learn(
    rank: int, rendezvous: scenarios.Rendezvous, folder: Path, shapes: dict[str, Any], out: Path
) -> dict[str, Any]:
    """By the layout: checkpoints before and after the steps, an export, and whether the base has moved."""
    found = {}
    for name, shape in shapes.items():
        recompute = "full" if name == "pp" else "none"
        with scenarios.policy(
            rank, rendezvous, folder, shape, actor=make_actor(recompute=recompute)
        ) as trained:
            base = {n: t.clone() for n, t in trained._model.tensors().items()}
            before = trained.logp(values.make_block())
            trained.save(out / f"{name}_before")
            dp = scenarios.dp_of(shape)
            batch = values.make_batch([scenarios.split(i, dp, (6,)) for i in range(STEPS)])
            reports = scenarios.play(trained, batch)["reports"]
            trained.save(out / f"{name}_after", export=out / f"{name}_from_checkpoint")
            trained.export(out / f"{name}_export")
            found[name] = {
                "before": before,
                "reports": reports,
                "after": trained.logp(values.make_block()),
                "frozen": all(torch.equal(t, base[n]) for n, t in trained._model.tensors().items()),
                "moved": sum(not torch.equal(t, base[n]) for n, t in trained.tensors().items()),
                "state": sum(t.numel() for t in trained._optimizer.tensors().values()),
            }
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return values.make_model(tmp_path_factory.mktemp("models"), "qwen3")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def learnt(model: Path, out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for count, shapes in SHAPES.items():
        found |= on_ranks(count, learn, model, shapes, out)[0]
    return found


def read_adapters(checkpoint: Path) -> dict[str, Any]:
    from hybridrl.trainer import adapters, committed

    layout = committed.layout(committed.read(checkpoint), "policy")
    assert isinstance(layout, AdapterLayout)
    return adapters.read(checkpoint, layout)


class PlainAdapter(torch.nn.Module):
    """A linear layer of transformers with an adapter; A may belong to several."""

    def __init__(self, linear: Any, a: torch.nn.Parameter, b: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.linear, self.a, self.b, self.scale = linear, a, torch.nn.Parameter(b.clone()), scale

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.linear(hidden) + self.scale * (hidden @ self.a.T @ self.b.T)


def plain_adapters(plain: Any, checkpoint: Path) -> dict[str, PlainAdapter]:
    """Put the adapters of a checkpoint into a model of transformers and freeze all else."""
    plain.requires_grad_(False)
    shared: dict[int, torch.nn.Parameter] = {}
    found = {}
    for name, (a, b, scale) in read_adapters(checkpoint).items():
        path = name.removesuffix(".weight")
        parent, _, last = path.rpartition(".")
        trained_a = shared.setdefault(a.data_ptr(), torch.nn.Parameter(a.clone()))
        found[name] = PlainAdapter(plain.get_submodule(path), trained_a, b, scale)
        setattr(plain.get_submodule(parent), last, found[name])
    return found


@pytest.fixture(scope="module")
def plain(model: Path, out: Path, learnt: dict[str, Any]) -> dict[str, Any]:
    network = values.load_plain(model)
    found = plain_adapters(network, out / "alone_before")
    setup = values.make_setup(0, "", model, (1, 1, 1), actor=make_actor())
    advantage_N = np.asarray(values.make_batch([]).advantage_N)
    steps = list(values.plain_steps(network, values.make_block(), advantage_N, setup, STEPS))
    return {"steps": steps, "adapters": {n: (m.a.detach(), m.b.detach()) for n, m in found.items()}}


def logp_of(folder: Path) -> np.ndarray:
    with torch.no_grad():
        return torch.cat(values.plain_logp(values.load_plain(folder), values.make_block(), 0.8)).numpy()


@pytest.mark.parametrize("name", ALL)
def test_losses_and_gradient_norms_are_those_of_plain_torch(name: str, learnt, plain) -> None:
    for report, (loss, norm) in zip(learnt[name]["reports"], plain["steps"], strict=True):
        assert report["loss"] == pytest.approx(loss, rel=TOLERANCE)
        assert report["grad_norm"] == pytest.approx(norm, rel=TOLERANCE)


@pytest.mark.parametrize("name", ALL)
def test_adapters_after_steps_are_those_of_plain_torch(name: str, learnt, plain, out) -> None:
    found = read_adapters(out / f"{name}_after")
    assert found.keys() == plain["adapters"].keys()
    for weight, (a, b) in plain["adapters"].items():
        torch.testing.assert_close(found[weight].a_RI, a, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(found[weight].b_OR, b, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ALL)
def test_a_checkpoint_begins_with_the_same_adapters_on_every_layout(name: str, learnt, out) -> None:
    first, again = (read_adapters(out / f"{n}_before") for n in ("alone", name))
    for weight, (a, b, _) in first.items():
        assert torch.equal(a, again[weight].a_RI) and a.abs().max() > 0
        assert torch.equal(b, again[weight].b_OR) and b.abs().max() == 0


@pytest.mark.parametrize("name", ALL)
def test_the_base_stays_and_merged_weights_move(name: str, learnt) -> None:
    assert learnt[name]["frozen"]
    assert learnt[name]["moved"] == 4 * (1 if name == "pp" else 2)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["export", "from_checkpoint"])
def test_an_export_in_transformers_is_the_policy(name: str, kind: str, learnt, out) -> None:
    mask = values.make_block().loss_mask_T
    np.testing.assert_allclose(logp_of(out / f"{name}_{kind}"), learnt[name]["after"][mask], atol=1e-5)
    assert np.abs(learnt[name]["after"] - learnt[name]["before"]).max() > 1e-2


def test_the_first_step_is_that_of_the_base_bit_for_bit(model, learnt) -> None:
    (before,) = on_ranks(1, whole_logp, model)
    np.testing.assert_array_equal(before, learnt["alone"]["before"])


def whole_logp(rank: int, rendezvous: scenarios.Rendezvous, folder: Path) -> np.ndarray:
    with scenarios.policy(rank, rendezvous, folder, (1, 1, 1)) as trained:
        return trained.logp(values.make_block())


def test_the_optimizer_has_state_of_adapters_only(learnt, out) -> None:
    found = read_adapters(out / "alone_before").values()
    a_sizes = {f.a_RI.data_ptr(): f.a_RI.numel() for f in found}
    assert learnt["alone"]["state"] == 2 * (sum(a_sizes.values()) + sum(f.b_OR.numel() for f in found))


def resume(rank: int, rendezvous: scenarios.Rendezvous, folder: Path, saved: Path) -> dict[str, Any]:
    """With a critic and a reference: a checkpoint between two batches, and the second batch from it."""
    algorithm = AlgorithmConfig.model_validate({"estimator": "gae", "kl": {"coefficient": 0.1}})
    shape, changes = TrainParallel(tp=2, dp=1), {"actor": make_actor(), "algorithm": algorithm}
    columns = {"advantage_N": None, "reward_N": np.array([0, 1, 1, 0] * 3, np.float32)}
    batches = [
        values.make_batch([scenarios.split(i, 1, (6,)) for i in range(2)], step=step, **columns)
        for step in (1, 2)
    ]
    with scenarios.policy(rank, rendezvous, folder, shape, **changes) as trained:
        first = scenarios.play(trained, batches[0])
        trained.save(saved)
        through = (scenarios.play(trained, batches[1]), scenarios.copy(trained))
        held = sum(1 for _ in trained._frozen.tensors())
    with scenarios.policy(rank, rendezvous, folder, shape, **changes) as trained:
        trained.restore(saved)
        again = (scenarios.play(trained, batches[1]), scenarios.copy(trained))
        reference = trained._loaded.columns["ref_logp"].clone()
        with lora_switched_off(trained):
            base = trained.logp(values.make_block())
    with scenarios.policy(rank, rendezvous, folder, shape, algorithm=algorithm) as trained:
        refusal = scenarios.refusal(lambda: trained.restore(saved))
    return {
        "first": first,
        "through": through,
        "again": again,
        "held": held,
        "reference": reference.numpy(),
        "base": base[values.make_block().loss_mask_T],
        "refusal": refusal,
    }


def lora_switched_off(trained: Any) -> Any:
    return trained._model.without_adapters()


@pytest.fixture(scope="module")
def resumed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(2, resume, model, tmp_path_factory.mktemp("run") / "saved")


def test_a_resumed_run_with_a_critic_continues_bit_for_bit(resumed) -> None:
    for rank in resumed:
        (through, weights), (again, weights_again) = rank["through"], rank["again"]
        assert through == again
        for name, weight in weights.items():
            np.testing.assert_array_equal(weight, weights_again[name])
        assert "critic/grad_norm" in through["reports"][0]["metrics"]


def test_the_reference_is_the_model_without_adapters_and_takes_no_copy(resumed) -> None:
    for rank in resumed:
        assert rank["held"] == 0
        np.testing.assert_allclose(np.sort(rank["reference"]), np.sort(rank["base"]), atol=1e-5)


def test_a_checkpoint_of_adapters_is_refused_where_all_weights_are_trained(resumed) -> None:
    for rank in resumed:
        assert rank["refusal"].startswith("CheckpointError")
        assert "adapters of rank 4, alpha 8" in rank["refusal"] and "all weights" in rank["refusal"]


def test_peft_files_hold_the_update_of_every_tensor(learnt, model, out) -> None:
    from safetensors.torch import load_file

    from hybridrl.trainer.adapters import write_peft

    write_peft(out / "tp_after", out / "peft", str(model))
    tensors, config = (
        load_file(out / "peft" / "adapter_model.safetensors"),
        json.loads((out / "peft" / "adapter_config.json").read_text()),
    )
    base, merged = (values.load_plain(folder).state_dict() for folder in (model, out / "tp_from_checkpoint"))
    scale, seen = config["lora_alpha"] / config["r"], set()
    for name, a in tensors.items():
        if ".lora_A." in name:
            weight = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
            update = scale * tensors[name.replace("lora_A", "lora_B")] @ a
            torch.testing.assert_close(base[weight] + update, merged[weight], rtol=0, atol=1e-6)
            seen.add(weight.split(".")[-2])
    assert sorted(seen) == config["target_modules"] and len(seen) == 7
