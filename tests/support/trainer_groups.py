"""What actor, critic and reference do in tests where each has ranks of its own: columns go through a store.

Each function runs on every rank of all three, which are counted in this order, and returns plain values.
"""

import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trainer_scenarios as scenarios
import trainer_values as values
from torch._C._distributed_c10d import FileStore

from hybridrl.batch import Minibatch

ELSEWHERE = frozenset({"value", "ref_logp"})


@dataclass(frozen=True)
class Shapes:
    """tp, pp, dp of each."""

    actor: tuple[int, int, int]
    critic: tuple[int, int, int]
    reference: tuple[int, int, int]

    @property
    def num_ranks(self) -> list[int]:
        return [int(np.prod(shape)) for shape in (self.actor, self.critic, self.reference)]

    def place(self, rank: int) -> tuple[str, int]:
        """Which of them a rank belongs to, and as which of its ranks."""
        for name, count in zip(("actor", "critic", "reference"), self.num_ranks, strict=True):
            if rank < count:
                return name, rank
            rank -= count
        return "none", rank


class Post:
    """Columns from rank to rank; asking waits until there is one."""

    def __init__(self, address: str) -> None:
        self._store = FileStore(address.removeprefix("file://"), -1)

    def put(self, name: str, column: np.ndarray | None) -> None:
        if column is not None:
            self._store.set(name, pickle.dumps(column).hex())

    def get(self, name: str) -> np.ndarray:
        return pickle.loads(bytes.fromhex(self._store.get(name).decode()))


def minibatches(dp: int, turned: bool) -> list[Minibatch]:
    """Two epochs of all rows. Turned: dealt to other ranks and microbatches, the order of rows reversed."""
    found = [scenarios.split(i, dp, (6,)) for i in range(2)]
    if not turned:
        return found
    block = values.make_block()
    rows = [[[11 - n for n in microbatch] for microbatch in rank] for rank in found[0].rows]
    return [values.make_minibatch(i, rows, block) for i in range(2)]


def played_apart(
    rank: int,
    rendezvous: Callable[[], str],
    folder: Path,
    all_shapes: Sequence[Shapes],
    saved: Path,
    **options: Any,
) -> list[Any]:
    """The steps of `options` by groups of each of the shapes, one after the other."""
    return [
        _play(rank, rendezvous, folder, shapes, saved / str(i), options)
        for i, shapes in enumerate(all_shapes)
    ]


def _play(
    rank: int,
    rendezvous: Callable[[], str],
    folder: Path,
    shapes: Shapes,
    saved: Path,
    options: dict[str, Any],
) -> Any:
    role, own = shapes.place(rank)
    places = {name: rendezvous() for name in ("actor", "critic", "reference", "critic again")}
    post, setup, columns = Post(rendezvous()), dict(options["setup"]), options["columns"]
    setup["algorithm"] = options["algorithm"]
    if role == "none":
        return None
    shape = getattr(shapes, role)
    batches = [
        values.make_batch(minibatches(shape[2], role != "actor"), step=step, **columns)
        for step in range(1, options["steps"] + 1)
    ]
    if role == "actor":
        return _actor(
            values.make_setup(own, places[role], folder, shape, remote_columns=ELSEWHERE, **setup),
            batches,
            post,
        )
    made = values.make_setup(own, places[role], folder, shape, **setup)
    if role == "reference":
        return _reference(made, batches, post)
    again = values.make_setup(own, places["critic again"], folder, shape, **setup)
    return _critic(made, again, batches, post, saved)


def _actor(setup: Any, batches: Sequence[Any], post: Post) -> Any:
    from hybridrl.trainer.policy import Policy

    policy, played = Policy(setup), []
    logps = [policy.logp(values.make_block())]
    for batch in batches:
        measured = policy.measure(batch)
        loaded = measured | policy.complete(
            {name: post.get(f"{name} {batch.step}") for name in sorted(ELSEWHERE)}
        )
        post.put(f"return {batch.step}", policy.column("return"))
        reports = [asdict(policy.step(minibatch.index)) for minibatch in batch.minibatches]
        played.append({"loaded": loaded, "reports": reports})
        logps.append(policy.logp(values.make_block()))
    policy.close()
    return {"played": played, "logps": logps}


def _critic(setup: Any, again: Any, batches: Sequence[Any], post: Post, saved: Path) -> Any:
    """Its metrics; and those of the last batch once more, by a critic that starts from a checkpoint."""
    with _critic_ranks(setup) as critic:
        played = []
        for batch in batches:
            if batch is batches[-1]:
                critic.save(saved)
            played.append(_critic_steps(critic, batch, post))
    with _critic_ranks(again) as critic:
        critic.restore(saved)
        resumed = _critic_steps(critic, batches[-1], post)
    return {"played": played, "resumed": resumed}


@contextmanager
def _critic_ranks(setup: Any):
    from hybridrl.trainer.roles.critic import CriticRanks

    critic = CriticRanks(setup)
    try:
        yield critic
    finally:
        critic.close()


def _critic_steps(critic: Any, batch: Any, post: Post) -> list[dict[str, float]]:
    critic.load(batch)
    post.put(f"value {batch.step}", critic.column("value"))
    critic.take(post.get(f"return {batch.step}"))
    return [critic.step(minibatch.index) for minibatch in batch.minibatches]


def _reference(setup: Any, batches: Sequence[Any], post: Post) -> None:
    from hybridrl.trainer.roles.frozen import FrozenRanks

    reference = FrozenRanks(setup, "ref_logp")
    for batch in batches:
        reference.load(batch)
        post.put(f"ref_logp {batch.step}", reference.column("ref_logp"))
    reference.close()


def played_with_offload(
    rank: int,
    rendezvous: Callable[[], str],
    folder: Path,
    actors: Mapping[str, Any],
    saved: Path,
    **options: Any,
) -> dict[str, Any]:
    """By the choice of offload: two batches, the second again from a checkpoint; what was away between."""
    found = {}
    for choice, actor in actors.items():
        batches = [values.make_batch(minibatches(2, False), step=s, **options["columns"]) for s in (1, 2)]
        changes = {"actor": actor, "algorithm": options["algorithm"]}
        with scenarios.policy(rank, rendezvous, folder, (1, 1, 2), **changes) as trained:
            played = [scenarios.play(trained, batches[0])]
            away, shared = _away(trained), _shares_gradients(trained)
            trained.save(saved / choice)
            played.append(scenarios.play(trained, batches[1]))
            weights = scenarios.copy(trained)
        with scenarios.policy(rank, rendezvous, folder, (1, 1, 2), **changes) as trained:
            trained.restore(saved / choice)
            resumed = scenarios.play(trained, batches[1])
        assert resumed == played[1]
        found[choice] = {
            **{"played": played, "resumed": resumed, "weights": weights},
            **{"away": away, "shared": shared},
        }
    return found


def _shares_gradients(trained: Any) -> bool:
    """Whether ranks of this host sum all gradients through memory that they map."""
    models = [model for model, _ in trained._trained.values()]
    return all(buffer.is_shared() for model in models for buffer in model.gradient_buffers())


def _away(trained: Any) -> dict[str, bool]:
    """Whether the storages of a policy's parts are empty, all of them."""
    critic = list(trained._critic.part[0].tensors().values())
    parts = {
        "state": [t for _, o in trained._trained.values() for t in o.tensors().values()],
        "gradients": [g for model, _ in trained._trained.values() for g in model.gradient_buffers()],
        "frozen": list(trained._frozen.tensors()),
        "critic": critic,
    }
    assert all(parts.values())
    return {part: all(t.untyped_storage().nbytes() == 0 for t in tensors) for part, tensors in parts.items()}
