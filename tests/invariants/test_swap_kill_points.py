"""Trainer ranks killed while they write: no engine answers with mixed weights; replicas complete the swap.

Engines and trainer ranks are processes of their own, and run the product's protocol, session and writer.
"""

import contextlib
import random
import re
import threading
import time

import pytest
from model_values import tiny
from swap_workers import ProcessGroup, Stage

from hybridrl.errors import EngineError, WorkerError
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.layout.vllm import VLLMLayout

NUM_KILLS = 20
SPEC = tiny(hidden_size=256, num_heads=8, num_kv_heads=4, head_dim=32, ffn_size=1024, vocab_size=2000)
"""Large enough that a write takes long beside the delay of a signal."""


class Doomed(ProcessGroup):
    """Trainer ranks of which some are killed a while after all were told to write."""

    killer = None

    async def outcomes(self, method, *args, ranks, timeout_s):
        if method == "write_weights" and self.killer and not self.killer.ident:
            self.killer.start()
        return await super().outcomes(method, *args, ranks=ranks, timeout_s=timeout_s)

    @contextlib.contextmanager
    def killing(self, ranks, delay_s):
        """Of the first write in the block. Afterwards all ranks live."""
        self.killer = threading.Timer(delay_s, lambda: [self.kill(rank) for rank in ranks])
        yield
        self.killer.join()
        self.killer = None
        for rank in ranks:
            self.renew(rank)


class Requests:
    """Asks both engines until the end of the block; while they refuse, every few milliseconds."""

    def __init__(self, stage):
        self._stage, self._done = stage, threading.Event()
        self.answers, self.refusals = [], []
        self._is_served = False

    def __enter__(self):
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._done.set()
        self._thread.join()

    def _ask(self):
        while not self._done.wait(0.1 if self._is_served else 0.002):
            sent = time.perf_counter()
            for answer in self._stage.beside("request"):
                received = time.perf_counter()
                self._is_served = not isinstance(answer, EngineError)
                if isinstance(answer, EngineError):
                    self.refusals.append(str(answer))
                else:
                    self.answers.append((sent, received, *answer))

    def between(self, start, end):
        """Answers to requests that were made and answered in this time."""
        return [answer for answer in self.answers if start < answer[0] and answer[1] < end]


@pytest.fixture(scope="module", params=[SGLangLayout, pytest.param(VLLMLayout, marks=pytest.mark.slow)])
def stage(request):
    stage = Stage(SPEC, Doomed, request.param)
    stage.push(0)
    stage.push(1)
    yield stage
    stage.end()


@pytest.fixture(scope="module")
def versions():
    """Each scenario brings the engines to the next version."""
    return iter(range(2, 10_000))


def write_s(stage):
    call = stage.writers.last("write_weights")
    return call.end - call.start


def test_replicas_complete_a_swap_from_any_instant_at_which_a_rank_was_killed(stage, versions):
    rng, clean_s, landed = random.Random(7), write_s(stage), 0
    refusals = []
    for _ in range(4 * NUM_KILLS):
        version, victim = next(versions), rng.randrange(4)
        with Requests(stage) as requests, stage.writers.killing([victim], rng.uniform(0.0, 0.8 * clean_s)):
            report = stage.push(version)
        dirty = stage.engines.last("begin_swap").end, stage.engines.last("commit_swap").start
        assert not requests.between(*dirty)
        assert {(v, whole) for _, _, v, whole in requests.answers} <= {(version - 1, True), (version, True)}
        assert stage.beside("request") == [(version, True)] * 2
        refusals += requests.refusals
        assert report.replays == len(stage.warnings)
        landed += any(f"rank {victim} died during 'write_weights'" in text for text in stage.warnings)
        if landed == NUM_KILLS:
            break
    assert landed == NUM_KILLS
    assert any("is dirty on the way to version" in refusal for refusal in refusals)


def test_engines_stay_dirty_when_the_last_holder_is_killed_and_serve_after_a_whole_swap(stage, versions):
    delay_s = 0.3 * write_s(stage)
    for _ in range(NUM_KILLS):
        version, error = next(versions), None
        with Requests(stage) as requests, stage.writers.killing([0, 2], delay_s):
            try:
                stage.push(version)
            except WorkerError as lost:
                error = str(lost)
        if error:
            break
        delay_s /= 2  # on a busy machine the signal may come after the last byte
        assert stage.beside("request") == [(version, True)] * 2
    assert error and re.search(r"no rank is left that holds embed.*trainer ranks \[0, 2\]", error), error
    assert stage.beside("state") == ["dirty"] * 2
    assert not all(stage.beside("holds", version))  # one may have got its last byte before the kill
    assert {(v, whole) for _, _, v, whole in requests.answers} <= {(version - 1, True)}
    assert all(isinstance(answer, EngineError) for answer in stage.beside("request"))
    assert stage.push(version).replays == 0
    assert stage.beside("request") == [(version, True)] * 2
