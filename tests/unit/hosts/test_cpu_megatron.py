"""The CPU host of Megatron: what it redirects is known, and elsewhere it stays out of the way."""

import logging
import subprocess
import sys
import threading

import pytest
import torch
import trainer_scenarios as scenarios
import trainer_values as values
from trainer_ranks import on_ranks

from hybridrl.hosts import cpu
from hybridrl.hosts.fused_adam import FusedAdam

SITES = """
Tensor.cuda()  models/common/language_module/language_module.py:LanguageModule.setup_embeddings_and_output_layer
Tensor.type()  optimizer/clip_grads.py:clip_grad_by_total_norm_fp32
Tensor.type()  optimizer/distrib_optimizer.py:DistributedOptimizer.__init__
Tensor.type()  optimizer/distrib_optimizer.py:DistributedOptimizer._build_model_and_main_param_groups
_get_cuda_rng_state  tensor_parallel/random.py:_get_all_rng_states
_set_cuda_rng_state  tensor_parallel/random.py:CudaRNGStatesTracker.add
_set_cuda_rng_state  tensor_parallel/random.py:_set_all_rng_states
device=cuda  optimizer/clip_grads.py:clip_grad_by_total_norm_fp32
device=cuda  optimizer/clip_grads.py:get_grad_norm_fp32
device=cuda  optimizer/optimizer.py:MixedPrecisionOptimizer.__init__
device=cuda  pipeline_parallel/schedules.py:forward_backward_no_pipelining
device=cuda  pipeline_parallel/schedules.py:forward_backward_pipelining_without_interleaving
device=cuda  utils.py:local_multi_tensor_l2_norm
torch.cuda.current_device  distributed/param_and_grad_buffer.py:_ParamAndGradBuffer.__init__
torch.cuda.current_device  pipeline_parallel/p2p_communication.py:P2PCommunicator._communicate.<locals>.create_tensor_recv_next
torch.cuda.current_device  pipeline_parallel/p2p_communication.py:P2PCommunicator._communicate.<locals>.create_tensor_recv_prev
torch.cuda.current_device  pipeline_parallel/p2p_communication.py:P2PCommunicator._communicate_shapes
torch.cuda.get_rng_state  tensor_parallel/random.py:CudaRNGStatesTracker.add
torch.cuda.manual_seed  tensor_parallel/random.py:CudaRNGStatesTracker.add
torch.cuda.manual_seed  tensor_parallel/random.py:model_parallel_cuda_manual_seed
torch.cuda.synchronize  pipeline_parallel/p2p_communication.py:P2PCommunicator._communicate
torch.cuda.synchronize  pipeline_parallel/p2p_communication.py:P2PCommunicator._communicate_shapes
"""  # noqa: E501
"""All that names CUDA in Megatron-core while a policy is built, trained, saved and restored."""

NEWER_SITES = """
torch.cuda.current_stream  distributed/param_and_grad_buffer.py:_ParamAndGradBucketGroup.start_grad_sync
"""
"""What 0.19 adds, the release for Python 3.12."""

WITH_CUDA = """
import sys, torch
torch.cuda.is_available = lambda: True
before = torch.cuda.current_device
from hybridrl.hosts import cpu
cpu.install()
with cpu.scope():
    assert torch.zeros(1).cpu is not None
assert torch.cuda.current_device is before
assert torch.overrides._get_current_function_mode() is None
assert not any(name.startswith("megatron") for name in sys.modules)
"""

AFTER_MEGATRON = """
import sys, types
sys.modules["megatron.core"] = types.ModuleType("megatron.core")
from hybridrl.hosts import cpu
try:
    cpu.install()
except RuntimeError as error:
    assert "before hybridrl.trainer.megatron" in str(error)
else:
    raise AssertionError("not refused")
"""


def test_every_redirected_function_of_megatron_is_known(tmp_path) -> None:
    model = values.make_model(tmp_path, "qwen2_tied")
    pipeline = on_ranks(4, scenarios.cuda_sites, model, (2, 2, 1), tmp_path / "pipeline")
    alone = on_ranks(1, scenarios.cuda_sites, model, (1, 1, 1), tmp_path / "alone")
    known = SITES.splitlines()[1:]
    if sys.version_info >= (3, 12):
        known += NEWER_SITES.splitlines()[1:]
    assert set().union(*pipeline, *alone) == set(known)


@pytest.mark.parametrize(
    "script", [WITH_CUDA, AFTER_MEGATRON], ids=["inert with CUDA", "refused after megatron"]
)
def test_installing(script) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)


def test_the_scope_ends_and_is_of_one_thread() -> None:
    found = []

    def allocate() -> None:
        try:
            found.append(torch.zeros(2, device="cuda").device.type)
        except (AssertionError, RuntimeError) as error:  # torch has no CUDA here
            found.append(type(error).__name__)

    with cpu.scope():
        allocate()
        other = threading.Thread(target=allocate)
        other.start()
        other.join()
    allocate()
    assert found[0] == "cpu"
    assert found[1] == found[2] != "cpu"


def test_newer_releases_of_megatron_ask_for_the_current_stream_before_they_reduce_gradients() -> None:
    cpu.install()
    assert isinstance(torch.cuda.current_stream(), torch.cpu.Stream)


def test_newer_releases_of_megatron_say_whether_graphs_capture_the_optimizer() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    options = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "adam_w_mode": True}
    FusedAdam([weight], **options, capturable=False)
    with pytest.raises(ValueError, match="capturable"):
        FusedAdam([weight], **options, capturable=True)


def test_what_megatron_logs_about_its_own_code_is_not_shown(caplog) -> None:
    cpu.install()
    logger = logging.getLogger("megatron.core.models.gpt.gpt_model")
    logger.warning("GPTModel IS DEPRECATED. GPTModel is only accepting critical bug fixes")
    logger.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
