"""Translates verl's trainer backend and its parallel sizes."""

from hybridrl.importer.translation import Line, Remark
from hybridrl.importer.verl_keys import A, R
from hybridrl.importer.verl_script import Found, Script

_MEGATRON_SIZES = {
    "tensor_model": "tp",
    "pipeline_model": "pp",
    "virtual_pipeline_model": "vpp",
    "context": "cp",
    "expert_model": "ep",
    "expert_tensor": "etp",
}
"""verl's name of a parallel size -> ours."""

_FSDP_BACKEND = "fsdp"

_PRECISIONS = {"bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "fp16": "fp16"}
_PRECISIONS |= {"float32": "fp32", "fp32": "fp32"}
"""fsdp_config.dtype -> actor.precision."""


def parallel(script: Script) -> Found:
    key = f"{R}.expert_parallel_size"
    experts = script.number(key, 1)
    if experts > 1 and script.get(f"{R}.name") == "vllm":
        why = "vLLM shards every expert over its tensor-parallel ranks here; rollout.engine: sglang has ep"
        yield Remark(script.source(key), why)
    elif experts > 1:
        yield Line("rollout.parallel.ep", experts, script.source(key))
    if not script.is_megatron:
        yield from _fsdp(script)
        return
    for name, ours in _MEGATRON_SIZES.items():
        key = f"{A}.megatron.{name}_parallel_size"
        if ours in ("tp", "pp") or script.get(key) is not None:
            yield Line(f"actor.parallel.{ours}", script.number(key, 1), script.source(key))


def _fsdp(script: Script) -> Found:
    """FSDP of verl, of either version, is FSDP2 here."""
    key = f"{A}.strategy"
    yield Line("actor.backend", _FSDP_BACKEND, script.source(key), "all GPUs share the model: dp is theirs")
    is_fsdp2 = script.get(key) == "fsdp2"
    for where in ("", "fsdp_config."):
        key = f"{A}.{where}ulysses_sequence_parallel_size"
        if (size := script.number(key, 1)) > 1:
            yield Line("actor.parallel.cp", size, script.source(key))
    key = f"{A}.fsdp_config.dtype"
    if (dtype := script.get(key)) in _PRECISIONS:
        yield Line("actor.precision", _PRECISIONS[dtype], script.source(key))
    key = f"{A}.fsdp_config.reshard_after_forward"
    if script.get(key, True) is False:
        yield Line("actor.gather", "once", script.source(key), "over all microbatches of an optimizer step")
    key = f"{A}.fsdp_config.offload_policy"
    if script.get(key, False) is True and is_fsdp2:  # version 1 ignores it
        yield Line("actor.keep_on_host", "all", script.source(key), "torch's CPUOffloadPolicy")
    key = f"{A}.fsdp_config.fsdp_size"
    if 0 < (size := script.number(key, -1)) < _num_gpus(script):
        yield Line("actor.parallel.shard", size, script.source(key), "ranks that share one copy")


def _num_gpus(script: Script) -> int:
    return script.number("trainer.nnodes", 1) * script.number("trainer.n_gpus_per_node", 8)
