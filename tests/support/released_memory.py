"""What device memory ranks give back to engines on the same GPU, recorded from torch's allocator.

The allocator is the CPU's. On a GPU, memory that is freed stays in torch's cache until the cache is released.
So what is freed after the last release of a call, an engine does not get.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import reward_model_values as reward_models
import trainer_scenarios as scenarios
import trainer_values as values
from torch.autograd.profiler import profile, record_function

from hybridrl.config.schema import AlgorithmConfig, RewardModelConfig
from hybridrl.hosts import cuda
from hybridrl.launch.reward_model_setup import scoring

PPO = AlgorithmConfig.model_validate(
    {"estimator": "gae", "kl": {"coefficient": 0.1, "estimator": "k1", "in": "reward"}}
)
COLUMNS = {"advantage_N": None, "reward_N": np.array([0, 1, 1, 0] * 3, np.float32)}


class Exit(NamedTuple):
    """What a call of a rank leaves behind."""

    releases: int
    """How often it released torch's cache."""

    cached: int
    """Bytes that it freed after the last release, or at all if there was none."""


Releases = dict[str, Exit]
"""By what a rank did."""

_RELEASE = "release_cached_memory"


class Ledger:
    """In the place of the device, in a process of its own."""

    def __init__(self) -> None:
        self.releases: Releases = {}
        cuda.release_cached_memory = self._release

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        gc.collect()  # what an earlier group of ranks left
        recorded: Any = profile(use_kineto=True, profile_memory=True)
        with recorded:
            yield
            gc.collect()
        events: list[Any] = sorted(recorded.kineto_results.events(), key=lambda event: event.start_ns())
        released = [at for at, event in enumerate(events) if event.name() == _RELEASE]
        after = events[released[-1] if released else 0 :]
        freed = [-event.nbytes() for event in after if event.name() == "[memory]" and event.nbytes() < 0]
        self.releases[what] = Exit(len(released), sum(freed))

    def _release(self) -> None:
        with record_function(_RELEASE):
            pass


def released(
    rank: int, rendezvous: Callable[[], str], model: Path, reward_model: Path, choice: str, out: Path
) -> dict[str, Releases]:
    """By group of ranks. Each is built, has one batch of two optimizer steps, and does what else it can."""
    actor = values.make_actor().model_copy(update={"offload": choice})

    def setup(**changes: Any) -> Any:
        return values.make_setup(rank, rendezvous(), model, (1, 1, 1), actor=actor, **changes)

    groups = {"policy": _policy, "reward model": _reward_model, "critic": _critic, "frozen": _frozen}
    return {name: group(setup, reward_model, out) for name, group in groups.items()}


def _batch() -> Any:
    return values.make_batch([scenarios.split(i, 1, (6,)) for i in range(2)], **COLUMNS)


def _policy(setup: Any, reward_model: Path, out: Path) -> Releases:
    from hybridrl.trainer.policy import Policy

    ledger = Ledger()
    with ledger.during("build"):
        policy = Policy(setup(algorithm=PPO))
    with ledger.during("load"):
        policy.load(_batch())
    with ledger.during("first step"):
        policy.step(0)
    with ledger.during("last step"):
        policy.step(1)
    with ledger.during("save"):
        policy.save(out / "policy")
    with ledger.during("restore"):
        policy.restore(out / "policy")
    with ledger.during("export"):
        policy.export(out / "exported")
    policy.close()
    return ledger.releases


def _reward_model(setup: Any, reward_model: Path, out: Path) -> Releases:
    from hybridrl.trainer.roles.reward_model import RewardModelRanks

    ledger = Ledger()
    with ledger.during("build"):
        ranks = RewardModelRanks(scoring(setup(), RewardModelConfig(path=str(reward_model))))
    with ledger.during("scores"):
        ranks.scores(reward_models.batch(1))
    ranks.close()
    return ledger.releases


def _critic(setup: Any, reward_model: Path, out: Path) -> Releases:
    from hybridrl.trainer.roles.critic import CriticRanks

    ledger, batch = Ledger(), _batch()
    with ledger.during("build"):
        critic = CriticRanks(setup(algorithm=PPO))
    with ledger.during("load"):
        critic.load(batch)
        value_U = critic.column("value")
        assert value_U is not None
        critic.take(value_U + 1)
    with ledger.during("first step"):
        critic.step(0)
    with ledger.during("last step"):
        critic.step(1)
    with ledger.during("save"):
        critic.save(out / "critic")
    with ledger.during("restore"):
        critic.restore(out / "critic")
    critic.close()
    return ledger.releases


def _frozen(setup: Any, reward_model: Path, out: Path) -> Releases:
    from hybridrl.trainer.roles.frozen import FrozenRanks

    ledger = Ledger()
    with ledger.during("build"):
        frozen = FrozenRanks(setup(algorithm=PPO), "ref_logp")
    with ledger.during("load"):
        frozen.load(_batch())
    frozen.close()
    return ledger.releases
