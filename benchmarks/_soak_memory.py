"""Half an hour of kills: whether the memory of every process is flat, and what comes of the run."""

import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import psutil

from benchmarks._soak import differs, processes, records, scores
from benchmarks._soak_runs import Soak

_EVERY_S, _WARM_S, _LEAST_S = 5.0, 240.0, 330.0
"""Time between two samples; the warm-up of a process, 30 steps beside other work; the least life that tells
something. A trainer rank grows for 25 steps, while it meets batches of new sizes, and then stays."""

_STEP_S, _PAUSE_S, _BETWEEN_KILLS_S = 6.0, 4.5, 225.0
_SAVE_EVERY = 5
_FLAT_SHARE, _FLAT_MIB = 0.05, 8.0

Sample = tuple[float, float]
"""Seconds, and MiB that are no file's. Pages that it shares with a process which it has forked count too:
otherwise the end of that one would look like growth."""


def memory_soak(folder: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Play a run that learns with kills for about so long, and the same run without any."""
    steps, memory = max(4, int(seconds / _STEP_S)), Memory()
    soak = Soak("learning", folder, steps, save_every=_SAVE_EVERY, pause_s=_PAUSE_S, watch=memory.watch)
    with ThreadPoolExecutor(1) as pool:  # the other run has no pauses, so that it ends long before
        other = pool.submit(Soak("learning", folder, steps, save_every=_SAVE_EVERY).play, "calm", 0, 0)
        played = soak.play("soak", seed, max(1, int(seconds / _BETWEEN_KILLS_S)))
        calm = other.result()
    run, without = folder / played.name, folder / calm.name
    done = [record["step"] for record in records(run, "step")]
    return {
        "run": played.as_dict(),
        "steps": steps,
        "steps_are_monotone": done == list(range(1, steps + 1)),
        "accuracy": scores(run),
        "accuracy_without_kills": scores(without),
        "differs": differs(without, run),
        "memory": memory.by_role(),
    }


class Memory:
    """Samples the memory of all processes of a run, in a thread."""

    def __init__(self) -> None:
        self.samples: dict[tuple[str, int], list[Sample]] = defaultdict(list)
        """(Role of a process, its id) -> samples."""

        self._over, self._thread = threading.Event(), None

    def watch(self, temporary: Path | None) -> None:
        """Begin to sample the processes with this temporary folder; None: end."""
        if temporary is not None:
            self._over = threading.Event()
            self._thread = threading.Thread(target=self._sample, args=(temporary,), daemon=True)
            self._thread.start()
        elif self._thread is not None:
            self._over.set()
            self._thread.join()

    def by_role(self) -> dict[str, dict[str, Any]]:
        """Role -> its processes that lived long enough, their memory, the largest growth of one, and whether
        all are flat."""
        lives: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for (role, _), samples in self.samples.items():
            if (found := growth(samples)) is not None:
                lives[role].append(found)
        return {
            role: {
                "processes": len(of_role),
                "mib": round(mean(size for size, _ in of_role), 1),
                "largest_growth_mib": round(max(grown for _, grown in of_role), 2),
                "is_flat": all(map(_is_flat, of_role)),
            }
            for role, of_role in sorted(lives.items())
        }

    def _sample(self, temporary: Path) -> None:
        while not self._over.wait(_EVERY_S):
            for process in processes(temporary):
                try:
                    found = process.memory_info()
                    size = (found.rss - found.shared) / 2**20
                    self.samples[role_of(process), process.pid].append((time.monotonic(), size))
                except psutil.Error:
                    continue


def growth(samples: Sequence[Sample]) -> tuple[float, float] | None:
    """MiB of a process, and by how much the last third of its life is above the first one, after its warm-up;
    None: it lived too short a time."""
    begin = samples[0][0]
    sizes = [size for at, size in samples if at - begin >= _WARM_S]
    third = len(sizes) // 3
    if samples[-1][0] - begin < _LEAST_S or not third:
        return None
    return mean(sizes), mean(sizes[-third:]) - mean(sizes[:third])


def _is_flat(life: tuple[float, float]) -> bool:
    size, grown = life
    return grown <= max(_FLAT_MIB, _FLAT_SHARE * size)


def role_of(process: psutil.Process) -> str:
    """What a process is for, from its command line."""
    words = process.cmdline() or [process.name()]
    line = " ".join(words)
    for sign, role in _ROLES:
        if sign in line:
            return role
    return Path(words[0].split()[0]).name


_ROLES = (
    ("ray::TrainerWorker", "trainer rank"),
    ("ray::RolloutWorker", "engine worker"),
    ("ray::RewardWorker", "reward worker"),
    ("ray::IDLE", "idle worker of Ray"),
    ("sglang::scheduler", "scheduler of the engine"),
    ("sglang::detokenizer", "detokenizer of the engine"),
    ("hybridrl.rewards.children", "scoring process"),
    ("-m hybridrl launch", "driver"),
    ("raylet/raylet", "raylet"),
    ("gcs/gcs_server", "GCS"),
    ("ray/dashboard", "agent of Ray"),
    ("ray/_private", "helper of Ray"),
    ("shutil.rmtree(folder", "cleaner"),
    ("hybridrl.rollout", "host of the engine"),
)
