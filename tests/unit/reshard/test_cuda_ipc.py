"""What CUDA IPC says where it cannot work."""

import pytest
import torch

from hybridrl.errors import ResourceError
from hybridrl.reshard.transports import base, cuda_ipc

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def test_tensors_on_cpu_are_refused():
    with pytest.raises(ResourceError, match="not one on cpu.*use shm"):
        cuda_ipc.export(torch.zeros(3))


@without_gpu
def test_attaching_without_the_gpu_is_refused():
    address = ("8a1e", b"\x02c", 12, 0, b"", 0, b"")
    shared = base.SharedTensor("cuda_ipc", address, torch.float32, (3,), (1,), 0)
    with pytest.raises(ResourceError, match="does not see GPU 8a1e: torch sees 0"):
        base.attach(shared)


@without_gpu
def test_the_self_test_says_that_there_is_no_gpu():
    with pytest.raises(ResourceError, match="no GPU 0 here: torch sees 0"):
        cuda_ipc.self_test()
