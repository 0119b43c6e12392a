"""How engines of SGLang start, fail and end: with a reason, and without anything left behind."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from engine_values import ROOT, TOLERANCE, answer, largest_difference, model, prompts, sampling, setup

from hybridrl.errors import (
    ConfigError,
    DeadlineError,
    EngineError,
    EngineLostError,
    ModelError,
    ResourceError,
)
from hybridrl.rollout.sglang.start import SGLangEngine


@pytest.fixture(scope="module")
def first():
    return model(1)


@pytest.fixture(scope="module")
def folder(first, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    first.save_pretrained(path)
    return path


def left_behind(engine):
    """Processes and files of an engine that are still there."""
    pids = [engine._process.pid, *engine._ready.pids]
    processes = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
    marks = [engine._ready.name, *(f"torch_{pid}_" for pid in pids), *(f"loky-{pid}-" for pid in pids)]
    files = [path.name for path in Path("/dev/shm").iterdir() if any(mark in path.name for mark in marks)]
    return processes, files, Path(engine._folder).exists()


def gone(pid):
    """Whether a process ends. On a busy machine, the end of its children alone may take it 10 s."""
    deadline = time.monotonic() + 60
    while psutil.pid_exists(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not psutil.pid_exists(int(pid))


@pytest.mark.slow
def test_an_engine_whose_scheduler_dies_says_so_and_leaves_nothing(folder, first):
    engine = SGLangEngine(setup(folder, version=None, log_path=str(folder / "doomed.log")))
    with pytest.raises(EngineError, match="must not serve"):
        answer(engine, prompts(1), sampling())

    async def first_swap():
        await engine.begin_swap(7)
        await engine.commit_swap(7)

    engine.export_parameters()
    asyncio.run(first_swap())
    _, block = answer(engine, prompts(2), sampling())
    assert largest_difference(first, block, 1.0) < TOLERANCE

    async def die():
        scheduler = psutil.Process(engine._ready.pids[0])
        scheduler.suspend()  # a fast engine would have answered by the time it is killed
        request = asyncio.create_task(engine.generate(prompts(32), sampling(max_response_tokens=30)))
        await asyncio.sleep(0)
        scheduler.kill()
        await request

    with pytest.raises(EngineLostError, match="doomed ended: .* was ended by SIGKILL"):
        asyncio.run(die())
    with pytest.raises(EngineLostError, match="doomed ended"):
        answer(engine, prompts(1), sampling())
    engine.shutdown()
    engine.shutdown()
    assert left_behind(engine) == ([], [], False)


@pytest.mark.slow
def test_an_engine_ends_with_its_owner(folder):
    program = f"""
from hybridrl.rollout.base import EngineSetup
from hybridrl.rollout.sglang.start import SGLangEngine
from hybridrl.rollout.sglang.sizes import SGLangParallel
engine = SGLangEngine(EngineSetup(model_folder={str(folder)!r}, log_path={str(folder / "orphan.log")!r},
                                  parallel=SGLangParallel(), max_prompt_tokens=32, max_response_tokens=32))
engine.export_parameters()
print(engine._process.pid, engine._folder, engine._ready.name, *engine._ready.pids, flush=True)
import os; os.kill(os.getpid(), 9)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    host, temporary, name, *pids = done.stdout.split()
    assert gone(host) and not Path(temporary).exists()
    marks = [name, *(f"_{pid}_" for pid in pids), *(f"-{pid}-" for pid in pids)]
    assert not [p.name for p in Path("/dev/shm").iterdir() if any(mark in p.name for mark in marks)]


@pytest.mark.slow
def test_an_engine_whose_owner_is_killed_while_it_starts_leaves_nothing(folder):
    """The host does not read its pipe then."""
    program = f"""
import os, threading, time
from hybridrl.rollout import process
from hybridrl.rollout.base import EngineSetup
from hybridrl.rollout.sglang.start import SGLangEngine
from hybridrl.rollout.sglang.sizes import SGLangParallel

def waits(self, connection):
    print(self._process.pid, self._folder, flush=True)
    time.sleep(3)
    os.kill(os.getpid(), 9)

process.EngineProcess._wait_until_up = waits
SGLangEngine(EngineSetup(model_folder={str(folder)!r}, log_path={str(folder / "early.log")!r},
                         parallel=SGLangParallel(), max_prompt_tokens=32, max_response_tokens=32))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    host, temporary = done.stdout.split()
    assert psutil.pid_exists(int(host)), "it starts for longer than its owner lives"
    assert gone(host) and not Path(temporary).exists()
    assert not [p for p in psutil.process_iter() if p.pid != os.getpid() and _session(p.pid) == int(host)]


def _session(pid):
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def test_an_engine_that_cannot_start_says_why(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(EngineError, match="engine ended: .*Error") as caught:
        SGLangEngine(setup(tmp_path))
    assert "engine.log ends with" in caught.value.where


def test_an_engine_that_does_not_come_up_in_time_is_given_up(folder):
    with pytest.raises(DeadlineError, match="not up after 0 s"):
        SGLangEngine(setup(folder, start_timeout_s=0.01, log_path=str(folder / "late.log")))


@pytest.mark.parametrize(
    "kind, options",
    [
        (ModelError, {"model_folder": "/nowhere"}),
        (ConfigError, {"max_response_tokens": 200}),
        (ResourceError, {"kv_cache_tokens": 100}),
    ],
)
def test_a_setup_that_cannot_work_is_refused_before_anything_starts(folder, kind, options):
    with pytest.raises(kind):
        SGLangEngine(setup(folder, **{"log_path": str(folder / "never.log")} | options))
    assert not (folder / "never.log").exists()
