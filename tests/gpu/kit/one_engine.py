"""An SGLang engine on one device: its answers, new weights in place, and a loop with a trainer."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_values
import numpy as np
import torch

from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import read
from hybridrl.reshard.swap import SwapWriter
from hybridrl.rollout.sglang import start
from hybridrl.rollout.sglang.start import SGLangEngine

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
EAGER = (
    {
        "attention_backend": "triton",
        "sampling_backend": "pytorch",
        "disable_cuda_graph": True,
        "enable_memory_saver": False,
    }
    if ON_GPU
    else {}
)
GRAPHS = EAGER | {"disable_cuda_graph": False, "enable_memory_saver": True, "chunked_prefill_size": 256}
STEPS, ROWS = 3, 8
GAP = 0.05 if ON_GPU else 1e-4
"""Mean nats between trainer and engine: bf16 of two programs, or fp32."""

Say = Callable[..., None]


def tiny(folder: Path, seed: int) -> Any:
    """A model of sizes that SGLang's kernels for GPUs take, with heads of 64."""
    sizes = {
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "head_dim": 64,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
    }
    model = engine_values.model(seed, **sizes)
    if ON_GPU:
        model = model.bfloat16()
    model.save_pretrained(folder)
    return model


def arithmetic(folder: Path, seed: int) -> None:
    """The quickstart's model with heads of 64."""
    from hybridrl.models.tiny import _arithmetic

    _arithmetic("qwen3", folder, seed, hidden_size=256, head_dim=64)


def opened(folder: Path, log: Path, arguments: dict[str, Any], **options: Any) -> SGLangEngine:
    plain = start.engine_arguments
    start.engine_arguments = lambda setup: plain(setup) | arguments
    limits = {"max_running_requests": 8, "memory_fraction": 0.2, "start_timeout_s": 300.0}
    try:
        return SGLangEngine(engine_values.setup(folder, log_path=str(log), **limits | options))
    finally:
        start.engine_arguments = plain


def check(name: str, arguments: dict[str, Any], folder: Path, out: Path, say: Say, expect: Say) -> None:
    """An engine answers with its weights, and with others that are written into it."""
    tiny(folder / "old", seed=1)
    new = tiny(folder / "new", seed=2).float()
    began = time.perf_counter()
    engine = opened(folder / "old", out / f"engine-{name}.log", arguments)
    say(**{f"{name}_start_s": round(time.perf_counter() - began, 1)})
    try:
        asked, greedy = engine_values.prompts(4), engine_values.sampling(temperature=0.0)
        target = SGLangLayout(read(folder / "old"))
        expect(f"{name}_probe", asyncio.run(engine.probe_loader(target)) is None)
        before = engine_values.responses(engine_values.answer(engine, asked, greedy)[1])
        serving = free_gb()
        asyncio.run(engine.release_cache())
        say(**{f"{name}_free_gb_serving_and_asleep": [serving, free_gb()]})
        source = MegatronLayout(read(folder / "new"))
        writer = SwapWriter(source, 0, [(target, engine.export_parameters())], device=DEVICE)
        dtype = torch.bfloat16 if ON_GPU else torch.float32
        shard = engine_values.shard(source, 0, folder / "new").items()
        tensors = {tensor: value.to(DEVICE, dtype) for tensor, value in shard}
        expect(f"{name}_checksums", asyncio.run(swap(engine, writer, tensors, 1)))
        after = engine_values.responses(engine_values.answer(engine, asked, greedy)[1])
        wanted = engine_values.greedy(new, asked)
        pairs = [(a, b) for x, y in zip(after, wanted, strict=True) for a, b in zip(x, y)]
        agree = sum(a == b for a, b in pairs) / len(pairs)
        say(**{f"{name}_agree_with_new": agree})
        expect(f"{name}_follows", after != before and agree > 0.5)
    finally:
        engine.shutdown()


def free_gb() -> float:
    return round(torch.cuda.mem_get_info()[0] / 1e9, 1) if ON_GPU else 0.0


async def swap(engine: SGLangEngine, writer: SwapWriter, tensors: Any, version: int) -> bool:
    """Write a version; whether both sides have the same checksums."""
    await engine.begin_swap(version)
    written = writer.write(tensors)
    sums = enumerate(await engine.checksums())
    held = {(0, rank, name): checksum for rank, found in sums for name, checksum in found.items()}
    await engine.commit_swap(version)
    return held == dict(written.checksums)


async def loop(folder: Path, out: Path, say: Say, expect: Say) -> None:
    """Swap, generate, release the cache, train: on one device, without Ray."""
    import trainer_values as values

    from hybridrl.batch import RankBatch
    from hybridrl.config.training import TrainParallel
    from hybridrl.trainer.policy import Policy

    tiny(folder / "model", seed=1)
    saver = {"enable_memory_saver": True} if ON_GPU else {}
    log = out / "engine-loop.log"
    engine = opened(folder / "model", log, EAGER | saver, version=None, memory_fraction=0.3)
    try:
        await engine.release_cache()
        setup = values.make_setup(
            0,
            f"file://{folder}/rendezvous",
            folder / "model",
            TrainParallel(dp=1),
            actor=values.make_actor(precision="bf16" if ON_GPU else "fp32"),
            device=0 if ON_GPU else None,
            temperature=1.0,
        )
        policy = Policy(setup)
        target = SGLangLayout(setup.model)
        writer = SwapWriter(policy.layout, 0, [(target, engine.export_parameters())], device=policy.device)
        for step in range(1, STEPS + 1):
            began = time.perf_counter()
            expect(f"checksums_{step}", await swap(engine, writer, policy.tensors(), step - 1))
            swapped = time.perf_counter() - began
            prompts = engine_values.prompts(ROWS, seed=step)
            drawn = engine_values.sampling(temperature=1.0, max_response_tokens=16, seed=step)
            block = (await engine.generate(prompts, drawn))[1]
            await engine.release_cache()
            mask_T, index = block.loss_mask_T, np.arange(len(block))
            gap = np.abs(policy.logp(block)[mask_T] - block.columns["rollout_logp"][mask_T])
            advantage = np.random.default_rng(step).normal(size=len(block)).astype(np.float32)
            minibatch = values.make_minibatch(0, [[index.tolist()]], block)
            policy.load(
                RankBatch(step, (block,), index * 0, index, index // 4, advantage, advantage, (minibatch,))
            )
            report = policy.step(0)
            reserved = torch.cuda.memory_reserved() / 1e9 if ON_GPU else 0.0
            say(step=step, swap_s=round(swapped, 4), gap_mean=float(gap.mean()), gap_max=float(gap.max()))
            say(loss=report.loss, grad_norm=report.grad_norm, reserved_gb=round(reserved, 2), free=free_gb())
            expect(f"gap_{step}", gap.mean() < GAP)
    finally:
        engine.shutdown()
