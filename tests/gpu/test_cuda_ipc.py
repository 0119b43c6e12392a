"""Memory of one GPU in two processes."""

import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from hybridrl.errors import ResourceError
from hybridrl.reshard.transports import base, cuda_ipc

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PEER = """
import pickle, sys, torch
from hybridrl.reshard.transports.base import attach
for line in sys.stdin:
    tensor = attach(pickle.loads(bytes.fromhex(line)))
    print(tensor.sum().item(), flush=True)
    tensor.mul_(2)
    torch.cuda.synchronize()
    print("written", flush=True)
    del tensor
"""

EXPANDABLE = """
import torch
from hybridrl.errors import ResourceError
from hybridrl.reshard.transports.cuda_ipc import export
torch.cuda.memory._set_allocator_settings("expandable_segments:True")
try:
    export(torch.ones(1 << 24, device="cuda"))
except ResourceError as error:
    print(error)
"""


def doubled(peer, tensor):
    """Let the peer double the values; the sum that it saw before."""
    print(pickle.dumps(cuda_ipc.export(tensor)).hex(), file=peer.stdin, flush=True)
    seen = float(peer.stdout.readline())
    assert peer.stdout.readline() == "written\n"
    return seen


@pytest.fixture(scope="module")
def peer():
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", PEER], stdin=pipe, stdout=pipe, text=True)
    yield process
    process.stdin.close()
    assert process.wait(60) == 0


def test_the_self_test_passes():
    cuda_ipc.self_test()


def test_both_processes_see_one_memory(peer):
    tensor = torch.arange(12.0, device="cuda").view(3, 4)
    for part in (tensor, tensor[1:, 2:], tensor.to(torch.bfloat16)):
        before = part.double().sum().item()
        assert doubled(peer, part) == before
        assert part.double().sum().item() == 2 * before


def test_parameters_keep_their_identity_and_their_neighbours(peer):
    model = nn.Linear(300, 200, device="cuda")
    weight, bias, before = model.weight, model.bias.detach().clone(), model.weight.detach().clone()
    doubled(peer, model.weight.data)
    assert model.weight is weight and torch.equal(weight.detach(), 2 * before)
    assert torch.equal(model.bias.detach(), bias)


def test_memory_is_free_again_after_both_sides_let_go(peer):
    torch.cuda.ipc_collect()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        tensor = torch.ones(1 << 22, device="cuda")
        doubled(peer, tensor)
        del tensor
    doubled(peer, torch.ones(1, device="cuda"))  # the peer has let go of the one before
    torch.cuda.ipc_collect()
    assert torch.cuda.memory_allocated() - before < 1 << 22


def test_expandable_segments_are_refused():
    answer = subprocess.run([sys.executable, "-c", EXPANDABLE], capture_output=True, text=True, timeout=120)
    assert "expandable segment" in answer.stdout, answer.stderr


def test_a_gpu_that_is_not_here_is_named():
    shared = cuda_ipc.export(torch.ones(8, device="cuda"))
    remote_columns = replace(shared, address=("00000000", *shared.address[1:]))
    with pytest.raises(ResourceError, match="does not see GPU 00000000"):
        base.attach(remote_columns)
