"""The stages of the kit: `stages.py NAME` runs one in this process and prints facts as lines of JSON.

A stage that finds a fault ends with an error. Each also runs on a CPU, small, unless kit.py says otherwise.
"""

import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

OUT = Path(os.environ["OUT"])
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
NUM_TABLES = 120 if ON_GPU else 3
LARGE = (70_000, 32_768)
"""Rows and columns of a matrix with more elements than 2**31, 4.6 GB in bf16."""

KINDS = ("qwen3_yarn", "qwen3_moe", "deepseek_v2_lite")
LOGP_LIMITS = {"fp32": 2e-4, "bf16": 0.3}
"""Nats between trainer and transformers in fp32."""


def say(**facts: Any) -> None:
    print(json.dumps(facts, default=str), flush=True)


def expect(what: str, holds: Any) -> None:
    say(**{what: bool(holds)})
    if not holds:
        raise AssertionError(what)


def temporary() -> Path:
    return Path(tempfile.mkdtemp(prefix="kit-"))


def facts() -> None:
    """Versions, GPU and driver."""
    import triton

    say(python=platform.python_version(), torch=torch.__version__, triton=triton.__version__)
    if ON_GPU:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        say(gpu=subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip())


def kernels() -> None:
    """Triton's executor writes the bits and checksums of the oracle; then more elements than 2**31."""
    if not ON_GPU:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    import box_tables

    from hybridrl.reshard.executors import oracle
    from hybridrl.reshard.executors import triton as ours

    for kind in ("strided", "blocks"):
        for seed in range(NUM_TABLES):
            table, sources, targets = getattr(box_tables, kind)(seed)
            there = [on_device(tensor) for tensor in targets]
            sent = [on_device(tensor) for tensor in sources]
            found = ours.prepare(table, sent, there).write(sent)
            wanted = oracle.prepare(table, sources, targets).write(sources)
            same = (found.checksums, found.scale_checksums) == (wanted.checksums, wanted.scale_checksums)
            pairs = zip(targets, there, strict=True)
            if not same or not all(equal(one, other) for one, other in pairs):
                raise AssertionError(f"{kind} {seed} differs from the oracle")
    say(tables_equal=2 * NUM_TABLES)
    if ON_GPU:
        _large(ours)


def on_device(tensor: Any) -> Any:
    """The tensor on the device, with its offset and strides, and so its alignment."""
    from hybridrl.reshard.block_fp8 import BlockFP8

    if isinstance(tensor, BlockFP8):
        kept = {name: getattr(tensor, name) for name in ("power_of_two", "transposed")}
        return BlockFP8(on_device(tensor.values), on_device(tensor.scales), **kept)
    storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).clone()
    moved = storage.to(DEVICE).view(tensor.dtype)
    return moved.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def equal(one: Any, other: Any) -> bool:
    from hybridrl.reshard.block_fp8 import BlockFP8

    if isinstance(one, BlockFP8):
        return equal(one.values, other.values) and equal(one.scales, other.scales)
    return torch.equal(one.contiguous().view(torch.uint8), other.cpu().contiguous().view(torch.uint8))


def _large(executor: Any) -> None:
    import box_tables

    from hybridrl.reshard.checksum import checksum

    source = torch.randn(*LARGE, device=DEVICE, dtype=torch.bfloat16)
    target = torch.empty_like(source).fill_(7)
    table = box_tables.table_of([(0, 0, 0, 0, 0, 0, *LARGE)], [source], [target])
    prepared = executor.prepare(table, [source], [target])
    written = prepared.write([source])
    expect("more_than_2_31", torch.equal(source, target))
    expect("its_checksum", next(iter(written.checksums.values())) == checksum(target))
    ours, copy = seconds(lambda: prepared.write([source], sums=False)), seconds(lambda: target.copy_(source))
    say(write_gb_per_s=round(source.nbytes / ours / 1e9), copy_gb_per_s=round(source.nbytes / copy / 1e9))


def seconds(work: Any) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def ipc() -> None:
    """The tests of CUDA IPC."""
    _end(sys.executable, "-m", "pytest", "-q", "-x", "tests/gpu/test_cuda_ipc.py")


def bench() -> None:
    """The weight update of one engine rank against the GPU's own copies, and to FP8."""
    options = ("--workloads", "W1,W4", "--fp8-workloads", "W4", "--rounds", "8")
    _end(sys.executable, "-m", "benchmarks.reshard_gpu", *options, "--json", str(OUT / "reshard_gpu.json"))


def _end(*command: str) -> None:
    raise SystemExit(subprocess.run(command, check=False).returncode)


def logprob() -> None:
    """The fused kernels against float64, forward and backward, at the sizes of a real vocabulary."""
    from hybridrl.trainer.kernels import fused, reference

    rows, vocabulary, chunk, temperature = 4096, 151_936, 32_768, 0.7
    for dtype, limit in ((torch.bfloat16, 2e-2), (torch.float32, 2e-5)):
        logits = (4 * torch.randn(rows, vocabulary, device=DEVICE)).to(dtype)
        target = torch.randint(0, vocabulary, (rows,), device=DEVICE)
        state = reference.start(rows, DEVICE)
        for first in range(0, vocabulary, chunk):
            fused.take(state, logits[:, first : first + chunk].contiguous(), target, first, temperature)
        log_sum = state[0] + state[1].log()
        entropy = state[1].log() - state[2] / state[1]
        exact = (logits.double() / temperature).log_softmax(1)
        gap = (state[3] - log_sum - exact.gather(1, target[:, None])[:, 0]).abs().max()
        expect(f"logp_{dtype}", gap < 1e-3)
        expect(f"entropy_{dtype}", (entropy + (exact.exp() * exact).sum(1)).abs().max() < 1e-3)
        grads = torch.randn(2, rows, device=DEVICE)
        found = fused.turn_into_gradient(
            logits.clone(), target, log_sum, entropy, grads[0], grads[1], 0, temperature
        ).double()
        p = exact.exp()
        wanted = -p * (grads[0][:, None] + grads[1][:, None] * (exact + entropy.double()[:, None]))
        wanted.scatter_add_(1, target[:, None], grads[0][:, None].double())
        expect(
            f"gradient_{dtype}", (found - wanted / temperature).norm() / wanted.norm() * temperature < limit
        )
        taken = seconds(lambda x=logits, t=target, s=state: fused.take(s, x, t, 0, temperature))
        say(**{f"take_gb_per_s_{dtype}": round(logits.nbytes / taken / 1e9)})
        del exact, p, wanted, found


def trainer() -> None:
    """Steps of small models against transformers: fp32, bf16, and twice the same bits."""
    import numpy as np
    import trainer_models as models
    import trainer_scenarios as scenarios
    import trainer_values as values
    import without_te

    from hybridrl.config.training import TrainParallel

    without_te.replace_layers()
    folder, mask_T = temporary(), values.make_block().loss_mask_T
    rendezvous = iter(f"file://{folder}/rendezvous-{i}" for i in range(100))
    shape, options = TrainParallel(dp=1), {"device": 0 if ON_GPU else None, "deterministic": True}
    for kind in KINDS:
        made = models.make_model(folder, kind)
        plain = models.learn_plainly(made, temporary())
        for precision, limit in LOGP_LIMITS.items():
            options["actor"] = values.make_actor(precision=precision)
            runs = [
                scenarios.train(0, lambda: next(rendezvous), [made], shape, (6,), 2, temporary(), **options)[
                    0
                ]
                for _ in range(2)
            ]
            gap = float(np.abs(runs[0]["before"][mask_T] - plain["logp"]).max())
            norms = [[r["grad_norm"], float(n)] for r, (_, n) in zip(runs[0]["reports"], plain["steps"])]
            say(**{f"{kind}_{precision}_logp_gap": gap, "grad_norms": np.round(norms, 5).tolist()})
            expect(f"{kind}_{precision}_near", gap < limit)
            expect(f"{kind}_{precision}_repeats", runs[0]["reports"] == runs[1]["reports"])


def engine() -> None:
    """An engine, first eager, then with captured graphs and the memory saver: answers follow the weights."""
    import one_engine

    for name, options in (("eager", one_engine.EAGER), ("graphs", one_engine.GRAPHS)):
        one_engine.check(name, options, temporary(), OUT, say, expect)


def loop() -> None:
    """Three steps of trainer and engine on the same device: swap, generate, release, train."""
    import one_engine
    import without_te

    without_te.replace_layers()
    asyncio.run(one_engine.loop(temporary(), OUT, say, expect))


def launch() -> None:
    """`hybridrl launch` of the quickstart on one GPU, without Transformer Engine: needs Ray."""
    import without_te

    overrides = [
        f"model.path={temporary() / 'model'}",
        "model.make=one_engine:arithmetic",
        "actor.parallel={dp: 1}",
        "rollout.parallel.tp=1",
        "observe.sinks=[]",
        "run.steps=3",
        f"run.folder={OUT}",
        "run.name=launch",
    ]
    if ON_GPU:
        overrides += ["cluster.gpus_per_node=1", "cluster.gpu=h200", "rollout.memory_fraction=0.3"]
    with without_te.in_every_process():
        command = [sys.executable, "-m", "hybridrl", "launch", "configs/quickstart.yaml", *overrides]
        done = subprocess.run(command, check=False)
    if done.returncode == 0:
        summary = json.loads((OUT / "launch" / "summary.json").read_text())
        expect("swap_checksums_ok", summary["swap_checksums_ok"])
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
