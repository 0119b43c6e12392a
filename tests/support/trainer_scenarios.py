"""What trainer ranks do in the tests; each function runs on every rank and returns plain values."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import trainer_values as values

from hybridrl.batch import Minibatch
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.errors import HybridRLError, ResourceError

if TYPE_CHECKING:
    from hybridrl.trainer.policy import Policy

Rendezvous = Callable[[], str]
Shape = values.Shape


@contextmanager
def policy(
    rank: int, rendezvous: Rendezvous, folder: Path, shape: Shape, **changes: Any
) -> "Iterator[Policy]":
    from hybridrl.trainer.policy import Policy

    made = Policy(values.make_setup(rank, rendezvous(), folder, shape, **changes))
    try:
        yield made
    finally:
        made.close()


def split(index: int, dp: int, cuts: Sequence[int]) -> Minibatch:
    """All twelve rows, dealt to `dp` ranks, each rank's cut into microbatches."""
    ranks = [list(range(r, 12, dp)) for r in range(dp)]
    edges = [0, *(c // dp for c in cuts), 12]
    rows = [[rank[a:b] for a, b in zip(edges, edges[1:])] for rank in ranks]
    return values.make_minibatch(index, rows, values.make_block())


def dp_of(shape: Shape) -> int:
    return values.parallel_of(shape).dp or 1


def play(trained: "Policy", batch: Any) -> dict[str, Any]:
    """Load a batch and step through all its minibatches."""
    loaded = trained.load(batch)
    return {"loaded": loaded, "reports": [asdict(trained.step(m.index)) for m in batch.minibatches]}


def two_steps(
    rank: int,
    rendezvous: Rendezvous,
    folder: Path,
    shape: Shape,
    backend: str,
    algorithm: AlgorithmConfig,
    batch_of: "Callable[[list[Minibatch]], Any]",
) -> list[dict[str, Any]]:
    """Reports of two steps on all twelve rows; `batch_of` makes the batch from its minibatches."""
    actor = values.make_actor().model_copy(update={"backend": backend})
    with policy(rank, rendezvous, folder, shape, actor=actor, algorithm=algorithm) as trained:
        return play(trained, batch_of([split(i, dp_of(shape), (6,)) for i in range(2)]))["reports"]


def copy(trained: "Policy") -> dict[str, np.ndarray]:
    return {name: tensor.float().numpy().copy() for name, tensor in trained.tensors().items()}


def train(
    rank: int,
    rendezvous: Rendezvous,
    folders: list[Path],
    shape: Shape,
    cuts: tuple[int, ...],
    steps: int,
    out: Path,
    **changes: Any,
) -> list[dict[str, Any]]:
    """Several models after one another: log-probabilities, `steps` steps on one minibatch, an export."""
    found = []
    for folder in folders:
        with policy(rank, rendezvous, folder, shape, **changes) as trained:
            before = trained.logp(values.make_block())
            played = play(trained, values.make_batch([split(i, dp_of(shape), cuts) for i in range(steps)]))
            after = trained.logp(values.make_block())
            trained.export(out / folder.name)
        found.append(played | {"before": before, "after": after, "export": out / folder.name})
    return found


def resume(
    rank: int,
    rendezvous: Rendezvous,
    folder: Path,
    shape: Shape,
    saved: Path,
    precision: str = "fp32",
    algorithm: Any = None,
    **columns: Any,
) -> dict[str, Any]:
    """Two batches with a checkpoint between; then the second one again, by a policy that starts there."""
    import torch

    changes = {"actor": values.make_actor(precision=precision, schedule="cosine", warmup_steps=2)}
    if algorithm is not None:
        changes["algorithm"] = algorithm
    batches = [
        values.make_batch([split(i, dp_of(shape), (6,)) for i in range(2)], seed=seed, step=step, **columns)
        for step, seed in ((1, 0), (2, 5))
    ]
    with policy(rank, rendezvous, folder, shape, **changes) as trained:
        play(trained, batches[0])
        trained.save(saved, {"position": 7})
        numbers = torch.rand(3).tolist()
        through = (play(trained, batches[1]), copy(trained))
    with policy(rank, rendezvous, folder, shape, **changes) as trained:
        torch.rand(17)
        trained.restore(saved)
        numbers_again = torch.rand(3).tolist()
        again = (play(trained, batches[1]), copy(trained))
        refusals = [refusal(lambda: trained.save(saved))]
    return {"through": through, "again": again, "numbers": (numbers, numbers_again), "refusals": refusals}


def save_between(
    rank: int, rendezvous: Rendezvous, folder: Path, shape: Shape, saved: Path
) -> list[dict[str, Any]]:
    """Two batches with a checkpoint between: what the second one reports."""
    with policy(rank, rendezvous, folder, shape) as trained:
        play(trained, _second(shape, seed=0, step=1))
        trained.save(saved)
        return play(trained, _second(shape))["reports"]


def resume_cut(
    rank: int, rendezvous: Rendezvous, folder: Path, shapes: dict[str, Shape], saved: Path, out: Path
) -> dict[str, dict[str, Any]]:
    """For each shape: restore, save again as out/NAME, then the second batch; restored twice."""
    import torch

    found = {}
    for name, shape in shapes.items():
        with policy(rank, rendezvous, folder, shape) as trained:
            notes = trained.restore(saved)
            trained.save(out / name)
            numbers = torch.rand(3).tolist()
            torch.rand(5)
            trained.restore(saved)
            numbers_again = torch.rand(3).tolist()
            reports = play(trained, _second(shape))["reports"]
        found[name] = {"notes": notes, "numbers": (numbers, numbers_again), "reports": reports}
    return found


def save_beside(rank: int, rendezvous: Rendezvous, folder: Path, shape: Shape, saved: Path) -> dict[str, Any]:
    """A checkpoint whose writer is held up until the next batch is trained on; then one that fails."""
    import threading

    from hybridrl.reshard import rank_files

    gate, write = threading.Event(), rank_files.write

    def held_up(*args: Any) -> None:
        gate.wait()
        write(*args)

    def failing(*args: Any) -> None:
        raise ResourceError("no room for 7 bytes")

    with policy(rank, rendezvous, folder, shape, async_save=True) as trained:
        play(trained, _second(shape, seed=0, step=1))
        rank_files.write = held_up
        trained.save(saved)
        through, there = play(trained, _second(shape)), [saved.exists()]
        gate.set()
        trained.finish_saving()
        there.append(saved.exists())
        rank_files.write = failing
        trained.save(saved.with_name("failed"))
        trained._saver._background._pool.submit(lambda: None).result()  # the writer has ended
        said = refusal(lambda: trained.load(_second(shape)))
    with policy(rank, rendezvous, folder, shape) as trained:
        trained.restore(saved)
        return {"through": through, "again": play(trained, _second(shape)), "there": there, "said": said}


def _second(shape: Shape, seed: int = 5, step: int = 2) -> Any:
    return values.make_batch([split(i, dp_of(shape), (6,)) for i in range(2)], seed=seed, step=step)


def restore_damaged(rank: int, rendezvous: Rendezvous, folder: Path, saved: list[Path]) -> list[str]:
    """What is said about checkpoints that cannot be restored; the policy stays as it was."""
    with policy(rank, rendezvous, folder, (1, 1, 1)) as trained:
        before = copy(trained)
        found = [refusal(lambda path=path: trained.restore(path)) for path in saved]
        assert all(np.array_equal(before[name], now) for name, now in copy(trained).items())
    with policy(
        rank, rendezvous, folder, (1, 1, 1), algorithm=AlgorithmConfig.model_validate({"estimator": "gae"})
    ) as trained:
        found.append(refusal(lambda: trained.restore(saved[-1].with_name("whole"))))
    return found


def with_a_gpu(rank: int, rendezvous: Rendezvous, folder: Path) -> str:
    import torch

    torch.cuda.is_available = lambda: True
    return refusal(lambda: policy(rank, rendezvous, folder, (1, 1, 1)).__enter__())


def refusal(call: Callable[[], object]) -> str:
    """Kind and text of the error that a call raises."""
    try:
        call()
    except HybridRLError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def algorithm_run(
    rank: int,
    rendezvous: Rendezvous,
    folder: Path,
    shape: Shape,
    algorithm: Any,
    minibatches: list[Minibatch],
    **changes: Any,
) -> dict[str, Any]:
    """Two batches, or `steps`, with a given algorithm; log-probabilities before, between and after."""
    block = values.make_block()
    steps, setup = changes.pop("steps", 2), changes.pop("setup", {})
    with policy(rank, rendezvous, folder, shape, algorithm=algorithm, **setup) as trained:
        logps = [trained.logp(block)]
        played = []
        for step in range(1, steps + 1):
            played.append(play(trained, values.make_batch(minibatches, **(changes | {"step": step}))))
            logps.append(trained.logp(block))
    return {"played": played, "logps": logps}


def algorithm_runs(
    rank: int, rendezvous: Rendezvous, folder: Path, shape: Shape, algorithms: dict[str, Any], **options: Any
) -> dict[str, dict[str, Any]]:
    """algorithm_run of several algorithms, each of them with changes of its own."""
    minibatches = [split(i, dp_of(shape), (4,)) for i in range(2)]
    return {
        name: algorithm_run(rank, rendezvous, folder, shape, algorithm, minibatches, **(options | changes))
        for name, (algorithm, changes) in algorithms.items()
    }


def lopsided(
    rank: int, rendezvous: Rendezvous, folder: Path, shape: Shape, minibatches: list[Minibatch], overlap: bool
) -> list[dict[str, Any]]:
    """Reports on minibatches of which ranks have unequal numbers of microbatches, or none."""
    with policy(rank, rendezvous, folder, shape, actor=values.make_actor(overlap=overlap)) as trained:
        return play(trained, values.make_batch(minibatches))["reports"]


def followed(
    rank: int, rendezvous: Rendezvous, folder: Path, algorithm: Any, saved: Path, **changes: Any
) -> dict[str, Any]:
    """Coefficients that three batches saw, the third once more after a resume."""
    place = "loss" if algorithm.kl.place == "loss" else "reward"
    if place == "loss":
        changes.pop("advantage_N")

    def seen(trained: "Policy", step: int) -> dict[str, float]:
        played = play(trained, values.make_batch([split(i, 1, ()) for i in range(2)], step=step, **changes))
        return played["loaded"] | played["reports"][0]["metrics"]

    with policy(rank, rendezvous, folder, (1, 1, 1), algorithm=algorithm) as trained:
        metrics = [seen(trained, 1), seen(trained, 2)]
        trained.save(saved)
        metrics.append(seen(trained, 3))
    with policy(rank, rendezvous, folder, (1, 1, 1), algorithm=algorithm) as trained:
        trained.restore(saved)
        again = seen(trained, 3)
    name = {"loss": "actor/kl_coef", "reward": "actor/reward_kl_penalty_coeff"}[place]
    names = (name, "actor/entropy_coef")
    return {"seen": {n: [m[n] for m in metrics] for n in names}, "again": again[name]}


def collisions(rank: int, rendezvous: Rendezvous, folder: Path, shape: Shape) -> Any:
    """Column old_collision of the whole block, its rows in order."""
    in_order = {"block_N": np.zeros(12, np.int64), "row_N": np.arange(12), "blocks": [values.make_block()]}
    algorithm = AlgorithmConfig.model_validate({"estimator": "optimal_token_baseline"})
    with policy(rank, rendezvous, folder, shape, algorithm=algorithm) as trained:
        trained.load(values.make_batch([split(0, 1, ())], advantage_N=None, **in_order))
        return trained._loaded.columns["old_collision"].numpy()


def lags(
    rank: int, rendezvous: Rendezvous, folder: Path, algorithm: Any, minibatches: list[Minibatch], step: int
) -> list[float]:
    with policy(rank, rendezvous, folder, (1, 1, 1), algorithm=algorithm) as trained:
        played = play(trained, values.make_batch(minibatches, step=step))
        assert np.isfinite(played["reports"][1]["loss"])
        return trained._loaded.columns["lag"].unique().tolist()


def not_finite(rank: int, rendezvous: Rendezvous, folder: Path, shape: Shape) -> dict[str, Any]:
    """A batch with an infinite advantage, then a sound one."""
    sound = values.make_batch([split(0, dp_of(shape), (6,))])
    assert sound.advantage_N is not None
    advantage_N = sound.advantage_N.copy()
    advantage_N[0] = np.inf
    with policy(rank, rendezvous, folder, shape) as trained:
        before = copy(trained)
        trained.load(replace(sound, advantage_N=advantage_N))
        said = refusal(lambda: trained.step(0))
        unchanged = all(np.array_equal(before[name], now) for name, now in copy(trained).items())
        after_refusal = play(trained, sound)
    with policy(rank, rendezvous, folder, shape) as trained:
        alone = play(trained, sound)
    return {"said": said, "unchanged": unchanged, "after_refusal": after_refusal, "alone": alone}


def with_actor(
    rank: int,
    rendezvous: Rendezvous,
    folder: Path,
    shape: Shape,
    actor: Any,
    *,
    logits_at_once: int | None = None,
) -> dict[str, Any]:
    from hybridrl.trainer import linear_logprob

    linear_logprob.LOGITS_AT_ONCE = logits_at_once or linear_logprob.LOGITS_AT_ONCE
    with policy(rank, rendezvous, folder, shape, actor=actor) as trained:
        played = play(trained, values.make_batch([split(i, dp_of(shape), (6,)) for i in range(2)]))
        return played | {"weights": copy(trained)}


def in_fp16(rank: int, rendezvous: Rendezvous, folder: Path, saved: Path) -> dict[str, Any]:
    """Steps in fp16 and fp32, some that overflow, and some with a checkpoint between."""
    from hybridrl.trainer.megatron import optimizer

    side, shape, usual = (
        {"actor": values.make_actor(precision="fp16")},
        (1, 1, 1),
        optimizer.INITIAL_LOSS_SCALE,
    )
    batch = values.make_batch([split(i, 1, (6,)) for i in range(3)])
    found: dict[str, Any] = {}
    for precision in ("fp16", "fp32"):
        with policy(rank, rendezvous, folder, shape, actor=values.make_actor(precision=precision)) as trained:
            found[precision] = play(trained, batch)
    optimizer.INITIAL_LOSS_SCALE = 2.0**100
    with policy(rank, rendezvous, folder, shape, **side) as trained:
        found["before"] = copy(trained)
        found["overflowed"] = play(trained, batch)
        found["after"] = copy(trained)
    optimizer.INITIAL_LOSS_SCALE = usual / 2
    with policy(rank, rendezvous, folder, shape, **side) as trained:
        play(trained, batch)
        trained.save(saved)
        found["through"] = (play(trained, batch), copy(trained))
    optimizer.INITIAL_LOSS_SCALE = usual
    with policy(rank, rendezvous, folder, shape, **side) as trained:
        trained.restore(saved)
        found["again"] = (play(trained, batch), copy(trained))
    return found


def guarded(rank: int, rendezvous: Rendezvous, folder: Path) -> dict[str, Any]:
    """What is said about planted bugs, each in a policy of its own, and whether weights stayed."""
    sound = values.make_batch([split(i, 1, ()) for i in range(2)])

    def leaked(trained: "Policy") -> None:
        block = replace(sound.blocks[0], loss_mask_T=np.ones_like(sound.blocks[0].loss_mask_T))
        trained.load(sound.with_blocks([block, sound.blocks[1]]))

    def moved(trained: "Policy") -> None:
        trained.load(sound)
        next(iter(trained.tensors().values())).mul_(1.01)
        trained.step(0)

    found = {}
    for name, bug in {"leaked": leaked, "moved": moved}.items():
        with policy(rank, rendezvous, folder, (1, 1, 1)) as trained:
            found[name] = refusal(lambda bug=bug, trained=trained: bug(trained))
    return found


def cuda_sites(rank: int, rendezvous: Rendezvous, folder: Path, shape: Shape, saved: Path) -> set[str]:
    """Megatron functions that the CPU host redirects while a policy is built, trained, saved and restored."""
    from hybridrl.hosts import cpu

    with cpu.record() as sites:
        with policy(rank, rendezvous, folder, shape, actor=values.make_actor(recompute="full")) as trained:
            play(trained, values.make_batch([split(i, dp_of(shape), (6,)) for i in range(2)]))
            trained.save(saved)
            trained.restore(saved)
    return sites
