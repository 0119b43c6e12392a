"""State that stays in host memory while FSDP trains: the steps are the same, and only a GPU gets copies."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.nn import Parameter

from hybridrl.config.training import OptimizerConfig
from hybridrl.trainer.fsdp.model import OnDevice
from hybridrl.trainer.fsdp.optimizer import Optimizer
from hybridrl.trainer.offload import Offload

CPU = torch.device("cpu")


@pytest.fixture
def alone(tmp_path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def optimizer(
    weights: dict[str, Parameter], on_host: bool, updates: list[float], **peaks: float
) -> Optimizer:
    return Optimizer(
        OptimizerConfig(lr=0.1, weight_decay=0.1, clip_grad_norm=0.5),
        weights,
        10,
        counted=list(weights),
        peaks=peaks,
        updated=lambda: updates.append(float(weights["matrix"].detach()[0, 0])),
        device=CPU,
        on_host=on_host,
    )


def weights() -> dict[str, Parameter]:
    random = torch.Generator().manual_seed(0)
    sizes = {"matrix": (3, 4), "vector": (4,), "empty": (0, 4)}
    return {name: Parameter(torch.randn(size, generator=random)) for name, size in sizes.items()}


def step(weights: dict[str, Parameter], optimizer: Optimizer) -> None:
    for weight in weights.values():
        weight.grad = weight.detach() * 2 + 1
    optimizer.step(optimizer.gradient_norm())


def test_a_step_on_the_host_is_the_step_on_the_device(alone) -> None:
    usual, kept, updates = weights(), weights(), []
    on_device, on_host = optimizer(usual, False, []), optimizer(kept, True, updates)
    for _ in range(3):
        step(usual, on_device)
        step(kept, on_host)
        assert all(torch.equal(usual[name], kept[name]) for name in usual)
        assert updates[-1] == usual["matrix"][0, 0], "the model has the new weights when it is told so"
    shared = {kept[name].data_ptr() for name in ("matrix", "vector")}
    assert not shared & {tensors["weights"].data_ptr() for _, _, tensors in on_host.flat_ranges()}


@pytest.mark.parametrize("on_host", [False, True])
def test_a_weight_with_a_peak_of_its_own_moves_by_that(alone, on_host) -> None:
    usual, changed = weights(), weights()
    first = {name: weight.detach().clone() for name, weight in usual.items()}
    step(usual, optimizer(usual, on_host, []))
    step(changed, optimizer(changed, on_host, [], matrix=0.05))
    assert torch.equal(usual["vector"], changed["vector"])
    assert torch.allclose((changed["matrix"] - first["matrix"]) * 2, usual["matrix"] - first["matrix"])


def test_weights_that_were_loaded_meanwhile_are_what_a_step_starts_from(alone) -> None:
    usual, kept = weights(), weights()
    on_device, on_host = optimizer(usual, False, []), optimizer(kept, True, [])
    for one in (usual, kept):
        one["matrix"].data.mul_(0.5)
    step(usual, on_device)
    step(kept, on_host)
    assert torch.equal(usual["matrix"], kept["matrix"])


def test_a_checkpoint_has_the_weights_of_the_model_and_a_resume_gives_them_to_it(alone) -> None:
    kept, fresh = weights(), weights()
    saved, restored = optimizer(kept, True, []), optimizer(fresh, True, [])
    step(kept, saved)
    kept["vector"].data.add_(1)
    copies = [{name: flat.clone() for name, flat in tensors.items()} for _, _, tensors in saved.flat_ranges()]
    for (_, _, tensors), copy in zip(restored.flat_ranges(), copies, strict=True):
        for name, flat in tensors.items():
            flat.copy_(copy[name])
    restored.resume(saved.progress)
    for _ in range(2):
        assert all(torch.equal(kept[name], fresh[name]) for name in kept)
        step(kept, saved)
        step(fresh, restored)


def test_a_swap_reads_copies_on_the_device_one_at_a_time() -> None:
    """The device that holds no numbers stands for a GPU."""
    held = {"one": torch.ones(2), "other": torch.zeros(3)}
    found = OnDevice(held, torch.device("meta"))
    assert list(found) == list(held) and len(found) == 2 and "one" in found and "none" not in found
    assert {found[name].device.type for name in held} == {"meta"}
    assert all(tensor.device.type == "cpu" for tensor in held.values())


def test_what_is_on_the_host_does_not_leave_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def synchronize(self) -> None: ...
        def wait_stream(self, other: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr("hybridrl.hosts.cuda.release_cached_memory", lambda: None)
    moments = torch.ones(4)
    offload = Offload([moments])
    offload.leave()
    assert moments.untyped_storage().nbytes() == 16
