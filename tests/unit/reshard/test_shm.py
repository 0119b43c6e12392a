"""Shared memory between two processes: seen by both, and gone after both."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hybridrl.errors import ResourceError
from hybridrl.reshard.transports import base, shm

PEER = """
import pickle, sys
from hybridrl.reshard.transports.base import attach
for line in sys.stdin:
    tensor = attach(pickle.loads(bytes.fromhex(line)))
    print(tensor.sum().item(), flush=True)
    tensor.mul_(2)
    print("written", flush=True)
"""

EXPORTER = """
import pickle, sys, time, torch
from hybridrl.reshard.transports.shm import export
tensor = torch.ones(1000)
print(pickle.dumps(export(tensor)).hex(), flush=True)
time.sleep(600)
"""


def python(code):
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True)


def segments(pid="self"):
    """What the process keeps open of shared memory: descriptor to inode."""
    found = {}
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(descriptor).startswith("/dev/shm/torch_"):
                found[descriptor.name] = descriptor.stat().st_ino
    return found


def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def mapped():
    """Inodes of shared memory that this process has mapped."""
    rows = Path("/proc/self/maps").read_text().splitlines()
    return {int(row.split()[4]) for row in rows if "/dev/shm/torch_" in row}


@pytest.fixture
def peer():
    process = python(PEER)
    yield process
    process.stdin.close()
    process.wait(60)


def test_both_processes_see_one_memory(peer):
    tensor = torch.arange(12.0).view(3, 4)
    for shared in (shm.export(tensor), shm.export(tensor[1:, 2:])):
        print(pickle.dumps(shared).hex(), file=peer.stdin, flush=True)
        before = float(peer.stdout.readline())
        assert peer.stdout.readline() == "written\n"
        seen = tensor if shared.shape == (3, 4) else tensor[1:, 2:]
        assert seen.sum() == 2 * before


def test_parameters_keep_their_identity_and_views_follow():
    model = nn.Linear(3, 2)
    weight, view, before = model.weight, model.weight.data[1], model.weight.detach().clone()
    attached = base.attach(shm.export(model.weight.data))
    assert model.weight is weight and torch.equal(weight, before)
    attached[1] = 7.0
    assert view.tolist() == [7.0] * 3 and weight[1].tolist() == [7.0] * 3


def test_tensors_of_one_storage_share_one_segment():
    arena = torch.zeros(100)
    known = set(segments())
    first, second = shm.export(arena[:40].view(4, 10)), shm.export(arena[40:])
    assert first.address == second.address and len(set(segments()) - known) == 1
    base.attach(second)[0] = 3.0
    assert arena[40] == 3.0
    assert (second.offset, second.shape) == (40, (60,))


def test_attaching_twice_is_fine():
    tensor = torch.zeros(5)
    shared = shm.export(tensor)
    one, two = shm.attach(shared), shm.attach(shared)
    one[0], two[1] = 1.0, 2.0
    del one
    assert tensor.tolist() == two.tolist() == [1.0, 2.0, 0.0, 0.0, 0.0]


def test_nothing_is_left_after_both_sides_let_go():
    known, ours = set(mapped()), f"torch_{os.getpid()}_"
    tensor = torch.zeros(5)
    attached = shm.attach(shm.export(tensor))
    mine = mapped() - known
    assert len(mine) == 1 and not [name for name in os.listdir("/dev/shm") if name.startswith(ours)]
    del tensor
    attached[0] = 1.0
    assert mapped() - known == mine
    del attached
    assert mapped() <= known and not set(segments().values()) & mine


def test_an_exporter_that_is_killed_leaves_its_memory_to_those_who_attached():
    exporter = python(EXPORTER)
    shared = pickle.loads(bytes.fromhex(exporter.stdout.readline()))
    attached = base.attach(shared)
    exporter.send_signal(signal.SIGKILL)
    exporter.wait()
    assert attached.sum() == 1000
    with pytest.raises(ResourceError, match="shared memory is gone.*restart the engine"):
        base.attach(shared)


def test_a_descriptor_that_went_to_another_file_is_not_taken_for_the_tensor():
    tensor = torch.zeros(5)
    shared = shm.export(tensor)
    del tensor
    others = [torch.ones(5) for _ in range(3)]
    taken = {shm.export(other).address[1] for other in others}
    assert shared.address[1] in taken
    with pytest.raises(ResourceError, match="let go of it"):
        base.attach(shared)


def test_processes_that_torch_started_are_not_needed():
    before = children()
    shared = shm.export(torch.zeros(5))
    assert shared.address and children() == before


def test_only_tensors_without_gaps_are_dense():
    tensor = torch.zeros(4, 6)
    dense = {
        name: shm.export(t).is_dense
        for name, t in {"all": tensor, "rows": tensor[1:3], "cut": tensor[:, 1:]}.items()
    }
    assert dense == {"all": True, "rows": True, "cut": False}
    assert shm.export(torch.zeros(3, 1)).is_dense and not shm.export(torch.zeros(3, 2).T).is_dense


def test_a_transport_that_is_not_there_is_named():
    with pytest.raises(
        ResourceError, match="no weight transport 'nccl_window' here.*use one of cuda_ipc, shm"
    ):
        base.find("nccl_window")


def test_tensors_elsewhere_are_refused():
    with pytest.raises(ResourceError, match="not one on meta"):
        shm.export(torch.zeros(3, device="meta"))
