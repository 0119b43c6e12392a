"""Which way weights take, and the order of a swap through the engine's own loader."""

import asyncio
import contextlib

import pytest
import torch
from model_values import tiny

from hybridrl.config.schema import ClusterConfig
from hybridrl.errors import EngineError, LayoutError, ResourceError, SwapError
from hybridrl.layout.loader import LoaderLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.reshard.topology import Topology
from hybridrl.workers import fallback
from hybridrl.workers.fallback import EngineApiSync
from hybridrl.workers.replacing import Replacements
from hybridrl.workers.sync import RaySync

DIFFERENCE = LayoutError(
    "qkv_proj should hold rows 0-3 of q_proj at rows 0-3; the loader puts rows 4-7 there"
)


class Ranks:
    """Two trainer ranks that answer at once."""

    def __init__(self, calls, hashes):
        self._calls, self._hashes = calls, hashes

    def __len__(self):
        return 2

    async def all(self, method, *args, timeout_s=None):
        self._calls.append(method)
        answers = {
            "weight_dtypes": [{torch.bfloat16}, {torch.bfloat16, torch.float32}],
            "plan_buckets": self._hashes,
            "write_bucket": [30, 12],
        }
        return answers[method]

    async def one(self, rank, method, *args, timeout_s):
        self._calls.append(method)
        return "buffer"

    async def outcomes(self, method, *args, ranks, timeout_s):
        self._calls.append(method)
        return dict.fromkeys(ranks, "plan")


class Trainer:
    def __init__(self, calls, hashes):
        self.workers = Ranks(calls, hashes)


class Rollout:
    """One engine; its gate shows in the calls."""

    def __init__(self, calls, differences, fails_at=None):
        self._calls, self._differences, self._fails_at = calls, differences, fails_at
        self.workers = range(len(differences))
        self.engines = Replacements(self.workers)

    async def all(self, method, *args):
        return list((await self.on(self.engines.present, method, *args)).values())

    async def on(self, engines, method, *args, timeout_s=None):
        self._calls.append(method)
        if method == self._fails_at:
            raise EngineError("SGLang did not load it")
        return {e: self._differences[e] if method == "probe_loader" else [{}] for e in engines}

    @contextlib.asynccontextmanager
    async def quiet(self):
        self._calls.append("close")
        yield
        self._calls.append("open")


ONE_NODE_OF_GPUS = Topology.colocated(2, [2], node_size=8)
TWO_NODES = Topology.colocated(2, [2], node_size=1)


def connect(path, *, differences=(None,), hashes=("same", "same"), fails_at=None, topology=None, layout=None):
    """(the role, calls so far, warnings)"""
    calls, warnings = [], []
    sync = asyncio.run(
        fallback.connect(
            path,
            Trainer(calls, hashes),
            Rollout(calls, list(differences), fails_at),
            layout or SGLangLayout(tiny("qwen3")),
            ClusterConfig(),
            lambda about, text: warnings.append(text),
            topology,
        )
    )
    return sync, calls, warnings


@pytest.mark.parametrize("path", ["auto", "in_place"])
def test_weights_are_written_in_place_where_the_probe_passes(path):
    sync, calls, warnings = connect(path)
    assert isinstance(sync, RaySync)
    assert calls == ["probe_loader", "export_parameters", "connect"] and not warnings


@pytest.mark.parametrize("topology", [None, ONE_NODE_OF_GPUS])
def test_a_difference_in_one_engine_sends_all_through_the_loader_with_a_warning(topology):
    sync, calls, (warning,) = connect("auto", differences=(None, DIFFERENCE), topology=topology)
    assert isinstance(sync, EngineApiSync)
    assert "export_parameters" not in calls
    assert "qkv_proj" in warning and "rows 4-7" in warning


def test_in_place_or_not_at_all():
    with pytest.raises(LayoutError, match="qkv_proj"):
        connect("in_place", differences=(DIFFERENCE,))


def test_over_several_nodes_there_is_no_way_around_a_difference():
    with pytest.raises(LayoutError, match="qkv_proj"):
        connect("auto", differences=(DIFFERENCE,), topology=TWO_NODES)


@pytest.mark.parametrize("topology", [None, ONE_NODE_OF_GPUS])
def test_the_engines_loader_can_be_asked_for(topology):
    sync, calls, warnings = connect("engine_api", topology=topology)
    assert isinstance(sync, EngineApiSync) and "probe_loader" not in calls and not warnings


def test_without_a_table_weights_take_the_engines_loader():
    sync, calls, warnings = connect("auto", layout=LoaderLayout(tiny("qwen3")))
    assert isinstance(sync, EngineApiSync) and "probe_loader" not in calls and not warnings


def test_over_several_nodes_the_engines_loader_is_refused():
    with pytest.raises(ResourceError, match="memory of one machine, the run has several"):
        connect("engine_api", topology=TWO_NODES)


def test_every_bucket_is_written_and_then_loaded_before_the_commit():
    sync, calls, _ = connect("engine_api")
    del calls[:]
    report = asyncio.run(sync.push(3))
    assert calls == ["close", "begin_swap", "write_bucket", "load_bucket", "commit_swap", "open"]
    assert (report.version, report.written_bytes, report.checksums_equal) == (3, 42, None)


def test_a_bucket_that_an_engine_did_not_load_leaves_the_gate_closed():
    sync, calls, _ = connect("engine_api", fails_at="load_bucket")
    with pytest.raises(EngineError, match="did not load"):
        asyncio.run(sync.push(1))
    assert calls[-1] == "load_bucket" and not {"commit_swap", "open"} & set(calls)


def test_ranks_that_plan_differently_are_refused():
    with pytest.raises(SwapError, match="disagree about the buckets"):
        connect("engine_api", hashes=("one", "other"))
