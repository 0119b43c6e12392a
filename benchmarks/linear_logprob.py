"""Log-probability and entropy of a large vocabulary, forward and backward: memory and time of three ways.

naive: the logits as a whole, in fp32, through log_softmax; kept: hybridrl's function on whole logits, which
keeps one tensor of their size; pieces: from hidden states, logits are never held. Each way runs in a
process of its own; the ways take turns, so that other load on the machine falls on all.
"""

import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks._report import arguments, publish
from hybridrl.trainer.linear_logprob import LOGITS_AT_ONCE, Shard, linear_logprob
from hybridrl.trainer.logprob import logprob_and_entropy

RESULT = {
    "rows": "tokens",
    "hidden": "width of the hidden states",
    "vocab": "entries of the vocabulary",
    "rounds": "runs of each way",
    "logits_gib": "size of the logits in fp32",
    "peak_gib_beyond_inputs": "memory of each way, the most of all rounds",
    "median_s": "forward and backward, of each way",
    "pieces_over_naive": "ratios of memory and of time",
}

Case = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def main() -> None:
    options = arguments(
        __doc__,
        smoke={"rows": 256, "hidden": 32, "vocab": 8192, "rounds": 1},
        rows=1024,
        hidden=896,
        vocab=151936,
        rounds=3,
    )
    shape = (options.rows, options.hidden, options.vocab)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for _ in range(options.rounds):
        for name, results in found.items():
            with get_context("spawn").Pool(1) as pool:
                results.append(pool.apply(measure, (name, *shape)))
    times = {name: median(t for t, _ in results) for name, results in found.items()}
    peaks = {name: max(m for _, m in results) for name, results in found.items()}
    publish(
        {
            "rows": options.rows,
            "hidden": options.hidden,
            "vocab": options.vocab,
            "rounds": options.rounds,
            "logits_gib": round(options.rows * options.vocab * 4 / 2**30, 3),
            "peak_gib_beyond_inputs": {name: round(peak, 3) for name, peak in peaks.items()},
            "median_s": {name: round(t, 3) for name, t in times.items()},
            "pieces_over_naive": {
                "memory": round(peaks["pieces"] / peaks["naive"], 3),
                "time": round(times["pieces"] / times["naive"], 3),
            },
        },
        options.json,
    )


def measure(name: str, rows: int, hidden: int, vocab: int) -> tuple[float, float]:
    """Seconds, and GiB at the peak above what the process held before."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    draw = torch.Generator().manual_seed(0)
    hidden_RH = torch.randn(rows, hidden, generator=draw).requires_grad_()
    weight_VH = (0.02 * torch.randn(vocab, hidden, generator=draw)).requires_grad_()
    target_R = torch.randint(vocab, (rows,), generator=draw)
    weight_VH.grad, hidden_RH.grad = torch.zeros_like(weight_VH), torch.zeros_like(hidden_RH)
    forget_peak()
    before, start = peak_gib(), time.perf_counter()
    logp_R, entropy_R = WAYS[name](hidden_RH, weight_VH, target_R)
    (logp_R.mean() - 0.01 * entropy_R.mean()).backward()
    return time.perf_counter() - start, peak_gib() - before


def forget_peak() -> None:
    """The peak of this process is what it holds now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_gib() -> float:
    """The most memory that this process held; ru_maxrss would count what the one that started it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**20


def naive(hidden_RH: Tensor, weight_VH: Tensor, target_R: Tensor) -> tuple[Tensor, Tensor]:
    log_p_RV = (hidden_RH @ weight_VH.T).log_softmax(1)
    entropy_R = -(log_p_RV.exp() * log_p_RV).sum(1)
    return log_p_RV.gather(1, target_R[:, None])[:, 0], entropy_R


def kept(hidden_RH: Tensor, weight_VH: Tensor, target_R: Tensor) -> tuple[Tensor, Tensor]:
    logits_RV = hidden_RH @ weight_VH.T
    return logprob_and_entropy(logits_RV, target_R, first=0, temperature=1.0, group=_everyone())


def pieces(hidden_RH: Tensor, weight_VH: Tensor, target_R: Tensor) -> tuple[Tensor, Tensor]:
    shard = Shard(first=0, num_entries=len(weight_VH), group=_everyone())
    chunk = LOGITS_AT_ONCE // len(hidden_RH)
    return linear_logprob(hidden_RH, weight_VH, target_R, shard, temperature=1.0, chunk=chunk)


def _everyone() -> dist.ProcessGroup:
    return cast(dist.ProcessGroup, dist.group.WORLD)  # there is one: measure() began it


WAYS: dict[str, Case] = {"naive": naive, "kept": kept, "pieces": pieces}

if __name__ == "__main__":
    main()
