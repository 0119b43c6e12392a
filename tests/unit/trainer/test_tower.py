"""What is trained of a vision tower, on one rank, and the token that cannot be sampled."""

import numpy as np
import pytest
import torch
import trainer_values as values
import vision_values as vision
from trainer_ranks import on_ranks

from hybridrl.config.images import VisionConfig
from hybridrl.models import spec

LR = 1.0e-4


BACKENDS = ("megatron", "fsdp")


def actor_of(backend, recompute="none", **changes):
    return values.make_actor(recompute=recompute).model_copy(update={"backend": backend, **changes})


def moved(rank, rendezvous, folder, backend, choice, pictures=True):
    """The largest change of a weight in the first step, which is about the learning rate, of the text model,
    of the projector, of the rest of the tower, and of what counts as fixed; and the log-probability of the
    placeholder."""
    import trainer_scenarios as scenarios

    actor = actor_of(backend, vision=choice)
    tower = spec.read(folder).vision
    assert tower is not None
    block = vision.make_block(tower)
    with scenarios.policy(rank, rendezvous, folder, (1, 1, 1), actor=actor, pictures=pictures) as trained:
        before = {name: tensor.clone() for name, tensor in trained.tensors().items()}
        minibatch = vision.split(0, 1, (), block)
        scenarios.play(trained, vision.make_batch(block, [minibatch]))
        change = {name: float((t - before[name]).abs().max()) for name, t in trained.tensors().items()}
        block.token_T[-1] = tower.image_token
        logp = trained.logp(block)[-1]
        shards = trained.layout.shards(rank)
    found = {"logp": float(logp), "fixed": 0.0, "num_fixed": len(trained.fixed)}
    for name, value in change.items():
        kind = "text" if "visual." not in name else "projector" if "merger" in name else "tower"
        found[kind] = max(found.get(kind, 0.0), value)
        found[f"num {kind}"] = found.get(f"num {kind}", 0) + 1
        if shards[name].param in trained.fixed:
            found["fixed"] = max(found["fixed"], value)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return vision.make_model(tmp_path_factory.mktemp("model"), "qwen3_vl")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("choice", "tower", "projector"),
    [
        ({}, 1.0, 1.0),
        ({"lr": LR}, LR, LR),
        ({"mode": "projector", "lr": LR}, 0.0, LR),
        ({"mode": "frozen"}, 0.0, 0.0),
    ],
    ids=str,
)
def test_each_part_moves_by_its_learning_rate(folder, backend, choice, tower, projector) -> None:
    (found,) = on_ranks(1, moved, folder, backend, VisionConfig(**choice))
    usual = found["text"]
    assert usual > 0
    for part, wanted in (("tower", tower), ("projector", projector)):
        assert found[part] == pytest.approx(usual if wanted == 1.0 else wanted, rel=0.1), part
    still = sum(
        found[f"num {part}"] for part, wanted in (("tower", tower), ("projector", projector)) if not wanted
    )
    assert found["fixed"] == 0.0 and found["num_fixed"] == still


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_placeholder_cannot_be_sampled_in_a_run_with_pictures(folder, backend) -> None:
    (shown,), (text,) = (
        on_ranks(1, moved, folder, backend, VisionConfig(), pictures) for pictures in (True, False)
    )
    assert shown["logp"] < -1e3 and text["logp"] > -20
    assert text["tower"] == text["projector"] == 0.0
    assert text["num_fixed"] == text["num tower"] + text["num projector"] and shown["num_fixed"] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_tokens_have_the_probabilities_that_are_left(folder, backend) -> None:
    (found,) = on_ranks(1, scored, folder, backend)
    block, tower = vision.make_block(spec.read(folder).vision), spec.read(folder).vision
    with torch.no_grad():
        plain = torch.cat(list(vision.plain_logp(vision.load_plain(folder), block, tower, 0.8)))
    assert np.abs(found - plain.numpy()).max() < 2e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_recomputed_layers_of_the_tower_have_the_same_gradients(folder, backend) -> None:
    (kept,), (again,) = (on_ranks(1, tower_gradients, folder, backend, how) for how in ("none", "full"))
    assert kept.keys() == again.keys() and any("blocks" in name for name in kept)
    assert all(np.array_equal(kept[name], again[name]) for name in kept)


def tower_gradients(rank, rendezvous, folder, backend, recompute):
    import trainer_scenarios as scenarios

    actor, tower = actor_of(backend, recompute), spec.read(folder).vision
    assert tower is not None
    block = vision.make_block(tower)
    with scenarios.policy(rank, rendezvous, folder, (1, 1, 1), actor=actor, pictures=True) as trained:
        assert tower_is_recomputed(trained) == (recompute == "full")
        trained.load(vision.make_batch(block, [vision.split(0, 1, (5,), block)]))
        _, _, found = trained.gradients(0)
    return {name: gradient.numpy() for name, gradient in found.items() if "visual." in name}


def tower_is_recomputed(trained):
    if trained.backend.setup.actor.backend == "megatron":
        return trained.backend._config.recompute_granularity == "full"
    return all(block.gradient_checkpointing for block in trained._model._network.body.visual.blocks)


def scored(rank, rendezvous, folder, backend):
    import trainer_scenarios as scenarios

    block = vision.make_block(spec.read(folder).vision)
    with scenarios.policy(
        rank, rendezvous, folder, (1, 1, 1), actor=actor_of(backend), pictures=True
    ) as trained:
        return trained.logp(block)[block.loss_mask_T]
