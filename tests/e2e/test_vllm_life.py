"""How engines of vLLM start, fail and end: with a reason, and without anything left behind."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from engine_kinds import VLLM_PYTHON, case_of
from engine_values import ROOT, TOLERANCE, answer, largest_difference, prompts, sampling

from hybridrl.errors import ConfigError, EngineError, ModelError, ResourceError

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def kind():
    return case_of("vllm")


@pytest.fixture(scope="module")
def first(kind):
    return kind.model(1)


@pytest.fixture(scope="module")
def folder(first, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    first.save_pretrained(path)
    return path


def group(pid):
    """Processes of a process group."""
    return [p.pid for p in psutil.process_iter() if _group_of(p.pid) == pid and p.status() != "zombie"]


def _group_of(pid):
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def mapped(pids):
    """Names of the files in shared memory that processes have mapped."""
    maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids)
    lines = [line for line in maps.splitlines() if "/dev/shm/" in line and not line.endswith(" (deleted)")]
    return {line.rpartition("/")[2] for line in lines}


def left(names):
    return {name for name in names if (SHARED_MEMORY / name).exists()}


@pytest.mark.slow
def test_an_engine_whose_worker_dies_says_so_and_leaves_nothing(kind, folder, first):
    engine = kind.engine(folder, tp=2, log_path=str(folder / "doomed.log"))
    try:
        _, block = answer(engine, prompts(2), sampling())
        assert largest_difference(first, block, 1.0) < TOLERANCE
        processes = group(engine._process.pid)
        files = mapped(processes)
        assert left(files) and len(processes) > 2

        async def die():
            worker = psutil.Process(engine._ready.pids[-1])
            worker.suspend()  # a fast engine would have answered by the time it is killed
            request = asyncio.create_task(engine.generate(prompts(32), sampling(max_response_tokens=30)))
            await asyncio.sleep(0.1)
            worker.kill()
            await request

        with pytest.raises(EngineError, match="doomed ended"):
            asyncio.run(die())
        with pytest.raises(EngineError, match="doomed ended"):
            answer(engine, prompts(1), sampling())
    finally:
        engine.shutdown()
        engine.shutdown()
    assert not left(files) and not group(engine._process.pid) and not Path(engine._folder).exists()


STARTS = """
import os, time
from pathlib import Path
from hybridrl.rollout import process
from hybridrl.rollout.base import EngineSetup
from hybridrl.rollout.hosting import shared_files
from hybridrl.rollout.vllm.sizes import VLLMParallel
from hybridrl.rollout.vllm.start import VLLMEngine

def waits(self, connection):
    print(self._process.pid, self._folder, flush=True)
    while len(list(Path(f"/proc/{{self._process.pid}}/task").iterdir())) < 2 or time.time() < {until}:
        time.sleep(0.1)
    print(*shared_files(("",)), flush=True)
    os.kill(os.getpid(), 9)

process.EngineProcess._wait_until_up = waits
VLLMEngine(EngineSetup(model_folder={folder!r}, log_path={log!r}, parallel=VLLMParallel(tp={tp}),
                       python={python!r}, max_prompt_tokens=32, max_response_tokens=32))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "after_s"), [(1, 3.0), *((2, s) for s in (8, 12, 16, 20, 24))])
def test_an_engine_whose_owner_is_killed_while_it_starts_leaves_nothing(kind, folder, tp, after_s):
    """At several moments: the host does not read its pipe, and vLLM starts one process after the other."""
    given = {"folder": str(folder), "log": str(folder / "early.log"), "tp": tp, "python": str(VLLM_PYTHON)}
    assert_nothing_is_left_of(STARTS.format(until=time.time() + after_s, **given))


def assert_nothing_is_left_of(program):
    """Of an engine whose owner runs a program that prints its host, its folder and its files, and dies."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    host, temporary, *files = done.stdout.split()
    deadline = time.monotonic() + 60
    while (group(int(host)) or Path(temporary).exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not group(int(host)) and not Path(temporary).exists() and not left(files)


@pytest.mark.slow
def test_an_engine_that_cannot_start_says_why(kind, folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(EngineError, match="engine ended: .*Error") as caught:
        kind.engine(tmp_path)
    assert "engine.log ends with" in caught.value.where


@pytest.mark.parametrize(
    "error, options",
    [
        (ModelError, {"model_folder": "/nowhere"}),
        (ConfigError, {"max_response_tokens": 200}),
        (ResourceError, {"kv_cache_tokens": 100}),
        (EngineError, {"python": "/no/such/python"}),
    ],
)
def test_a_setup_that_cannot_work_is_refused_and_leaves_nothing(kind, folder, error, options):
    with pytest.raises(error):
        kind.engine(folder, **{"log_path": str(folder / "never.log")} | options)
    assert not psutil.Process().children()


ENDS = """
import os, signal
from hybridrl.rollout.base import EngineSetup
from hybridrl.rollout.hosting import shared_files
from hybridrl.rollout.vllm.sizes import VLLMParallel
from hybridrl.rollout.vllm.start import VLLMEngine

engine = VLLMEngine(EngineSetup(model_folder={folder!r}, log_path={log!r}, parallel=VLLMParallel(tp={tp}),
                                python={python!r}, max_prompt_tokens=32, max_response_tokens=32))
engine.export_parameters()
print(engine._process.pid, engine._folder, *shared_files(("",)), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("tp", [1, 2])
def test_an_engine_ends_with_its_owner(kind, folder, tp):
    given = {"folder": str(folder), "log": str(folder / "orphan.log"), "tp": tp, "python": str(VLLM_PYTHON)}
    assert_nothing_is_left_of(ENDS.format(**given))
