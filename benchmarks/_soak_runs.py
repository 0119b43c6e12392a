"""Runs of a soak: launched, killed and launched again until they are done, and looked at then."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks._soak import (
    PATHS,
    SCENARIOS,
    Kill,
    Killer,
    Played,
    corrupt,
    last_step,
    left_over,
    lost_or_twice,
    plan,
    planted_that_happened,
    temporary_folder,
)

_MOST_LAUNCHES = 20


class Soak:
    """Plays runs of one mode."""

    def __init__(
        self,
        mode: str,
        folder: Path,
        steps: int,
        *,
        save_every: int = 1,
        pause_s: float = 0.0,
        watch: Callable[[Path | None], None] = lambda temporary: None,
    ) -> None:
        """
        Args:
            pause_s: seconds that every step waits.
            watch: called with the temporary folder of each launch, and with None at its end.
        """
        self._mode, self._scenario = mode, SCENARIOS[mode]
        self._folder, self._steps, self._save_every = folder, steps, save_every
        self._pause_s, self._watch = pause_s, watch

    def play(self, name: str, seed: int, kills: int, only: Sequence[str] = ()) -> Played:
        """Launch a run until it is done.

        Args:
            only: kinds that are killed, as in `plan`.
        """
        draw, run = random.Random(seed), self._folder / name
        left = plan(draw, self._scenario, self._steps, kills, only)
        played, began = Played(name, self._mode, seed, list(map(str, left))), time.monotonic()
        while not played.ended and played.launches < _MOST_LAUNCHES:
            with temporary_folder() as temporary:
                self._watch(temporary)
                played.ended = self._launch(played, left, temporary, draw)
                self._watch(None)
                orphans, leftovers = left_over(temporary)
            played.launches += 1
            played.orphans, played.leftovers = played.orphans + orphans, played.leftovers + leftovers
            left = [kill for kill in left if kill.step > last_step(run) + 1]
        played.seconds = round(time.monotonic() - began, 1)
        played.happened += planted_that_happened(run)
        played.restarts = self._log(name).read_text().count("again from step")
        played.corrupt = corrupt(run / "checkpoints")
        played.lost_or_twice = lost_or_twice(run / "checkpoints", self._scenario.prompts * self._save_every)
        return played

    def _launch(self, played: Played, left: Sequence[Kill], temporary: Path, draw: random.Random) -> bool:
        """Launch a run once; whether it has done all of its steps."""
        command = [sys.executable, "-m", "hybridrl", "launch", self._scenario.config, "--continue"]
        command += [*self._words(played.name), *self._planted(left)]
        with self._log(played.name).open("a") as log:
            paths = os.pathsep.join([os.environ.get("PYTHONPATH", ""), *PATHS])
            variables = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": paths}
            driver = subprocess.Popen(command, stdout=log, stderr=log, env=variables)
        outside = [kill for kill in left if not kill.phase]
        killer = Killer(self._folder / played.name, temporary, outside, draw)
        code = driver.wait()
        killer.stop()
        played.happened += map(str, killer.happened)
        return code == 0

    def _words(self, name: str) -> list[str]:
        return [
            *(
                f"run.folder={self._folder}",
                f"run.name={name}",
                f"run.steps={self._steps}",
                f"run.save_every={self._save_every}",
            ),
            *("run.evaluate_every=0", "run.keep_checkpoints=1000", "run.max_restarts=3", "observe.sinks=[]"),
            *self._scenario.overrides,
        ]

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _planted(self, kills: Sequence[Kill]) -> list[str]:
        """Words of the command line: the kills, and pauses, also after a kill of an engine, in which another
        one starts."""
        planted = [str(kill) for kill in kills if kill.phase]
        engines = [kill.step for kill in kills if kill.kind in ("engine", "engine_worker", "scheduler")]
        last = max((kill.step for kill in kills), default=0)
        waits = [f"slow:trainer:0@step={s + 1},phase=load,seconds=12" for s in engines if s < last]
        if self._pause_s:
            steps = range(1, self._steps + 1)
            waits += [f"slow:driver@step={s},phase=generate,seconds={self._pause_s}" for s in steps]
        return [word for fault in (*planted, *waits) for word in ("--inject", fault)]
