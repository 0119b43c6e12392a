"""The interface of a rollout engine: how it is started, what it does, and how a config names it.

Each folder in this package is a kind of engine. The folder's name is its name in rollout.engine, and its
package registers an EngineKind. A kind outside the project is named as module:Kind. Neither the module of a
kind nor this file imports numpy, torch or the engine, because config checks and `hybridrl plan` import them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from hybridrl import registry
from hybridrl.config.rollout import EngineParallel
from hybridrl.config.schema import Config
from hybridrl.errors import HybridRLError, LayoutError
from hybridrl.layout.base import Layout
from hybridrl.layout.loader import LoaderLayout
from hybridrl.models.spec import ModelSpec
from hybridrl.outside import Guarded, called, is_outside
from hybridrl.rollout.session import EngineSession
from hybridrl.types import Finish, PolicyVersion, Prompt, Sampling, Trajectory

if TYPE_CHECKING:  # a config is loaded without numpy and torch
    import numpy as np

    from hybridrl.batch import TokenBlock
    from hybridrl.reshard.buckets import Bucket
    from hybridrl.reshard.transports.base import SharedTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """Arguments with which an engine is started."""

    model_folder: str
    """Folder in Hugging Face format with the weights of `version`."""

    log_path: str
    """File to which the engine's processes print."""

    parallel: EngineParallel
    """Parallel layout, an instance of EngineKind.parallel."""

    seed: int = 0
    max_prompt_tokens: int = 1024
    max_response_tokens: int = 1024
    kv_cache_tokens: int | None = None
    """Size of the key-value cache. None: memory_fraction determines it on a GPU, the kind on a CPU."""

    memory_fraction: float = 0.8
    max_running_requests: int = 256
    fp8_weights: bool = False
    """Linear layers and experts are quantised in blocks. The folder's weights are not read then: `version` is
    None, and the first swap writes all."""

    fp8_cache: bool = False
    """The key-value cache holds e4m3."""

    version: PolicyVersion | None = 0
    """Version of the weights. None: they have no version, and the engine serves only after its first swap."""

    start_timeout_s: float = 600.0
    python: str | None = None
    """Interpreter in which the engine runs. None: the one of this process."""

    deterministic: bool = False
    """The same requests, with seeds, get the same answers however they are batched. On a CPU that is always
    so; on a GPU, SGLang samples and computes in a slower way."""

    returns_experts: bool = False
    """Answers contain the experts to which each token was routed."""

    parts: int = 1
    """Number of parts of the engine. Each part is on another node with its share of the ranks, and all parts
    start together."""

    part: int = 0
    """Index of this part. Part 0 answers requests; the others only start and stop."""

    rendezvous: str = ""
    """host:port of part 0 if there are several parts; the engine also uses the six following ports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request for one answer."""

    id: str
    """Identifier, unique among running requests."""

    token_ids: tuple[int, ...]
    sampling: Sampling
    """Sampling options with num_samples = 1. The answer depends on `seed` and on no other request."""

    arrays: Mapping[str, "np.ndarray"] = field(default_factory=dict)
    """Inputs of the model other than tokens, such as images, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to a request.

    Shape letters: T tokens of the answer, S tokens of prompt and answer without the last one, L layers, K
    experts of a token, or tokens that were likeliest.
    """

    id: str
    """Identifier of the request."""

    token_T: "np.ndarray"
    """int32: token ids, including the end token."""

    logp_T: "np.ndarray"
    """float32: log-probabilities as in column rollout_logp of a TokenBlock."""

    version_T: "np.ndarray"
    """int32: version of the weights that sampled each token. It changes within an answer if weights were
    swapped between pause and continue."""

    finish: Finish
    """Why the answer ended. If it was aborted, it has the tokens sampled until then."""

    experts_SLK: "np.ndarray | None" = None
    """int32: experts of each token. None if they were not requested, or the answer was aborted."""

    head_TK: "tuple[np.ndarray, np.ndarray] | None" = None
    """The tokens that were likeliest at each place of the answer: int32 ids, and float32 log-probabilities
    like logp_T, [T, K] each. None if they were not requested."""

    cached_tokens: int | None = None
    """Tokens of the prompt whose keys and values were in the cache. None: the engine does not say."""


class Engine(Protocol):
    """A running engine. Requests may come from any thread or event loop; swaps come from one caller.

    Once it has ended, or holds other weights than it should, its methods raise EngineLostError, by which a
    run replaces it. All other errors end the run.
    """

    @property
    def session(self) -> EngineSession: ...

    async def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling
    ) -> tuple[list[list[Trajectory]], "TokenBlock"]:
        """Answer prompts: token ids in, token ids out.

        Args:
            prompts: prompts, at least one.
            sampling: answer i, counted over prompts and samples, is drawn with seed + i; if seed is None, the
                engine chooses seeds. An answer ends at the model's own end tokens and at stop_token_ids.

        Returns:
            (trajectories, block): num_samples trajectories per prompt, in order, and their tokens. A stop
            token is part of the answer, has a log-probability and is trained on. Log-probabilities are of the
            whole vocabulary at the sampling temperature (at 1 if that is 0), before top-p and top-k.

        Raises:
            EngineError: a swap is in progress or failed, the engine died, a prompt is too long, or weights
                were swapped during the call.
        """
        ...

    async def request(self, request: Request) -> Answer:
        """Answer one prompt; with the same seed the answer is that of `generate`.

        A paused engine answers after `continue_`. Weights may be swapped while the request is paused.

        Raises:
            EngineError: a swap is in progress or failed, the engine died, the prompt is too long, the id is
                that of a running request, num_samples is not 1, or the engine does not support `arrays`.
        """
        ...

    async def abort(self, ids: Sequence[str]) -> None:
        """End these requests early, also on a paused engine. Ids that are not running are ignored."""
        ...

    async def pause(self, *, keep_cache: bool = False) -> float | None:
        """Stop sampling until `continue_`; weights may be swapped meanwhile. Running requests stay.

        Args:
            keep_cache: whether the key-value cache of running requests stays too. If not, it is dropped, and
                tokens sampled after a swap have the probabilities of the new weights. If it stays, these
                tokens see keys and values of the old weights; requests that come later see none of them. A
                kind of engine that cannot do so refuses rollout.swap = in_flight_keep_cache.

        Returns:
            Seconds that the engine has spent until now on computing dropped caches again; None if it does not
            tell.
        """
        ...

    async def continue_(self) -> None:
        """Resume sampling after `pause`.

        Raises:
            EngineError: a swap is in progress or failed.
        """
        ...

    async def release_cache(self) -> None:
        """Free the key-value cache on a GPU until `resume_cache` or the next commit.

        No request may come in between. Running requests end first, unless the engine is paused.
        """
        ...

    async def resume_cache(self) -> None: ...

    def export_parameters(self) -> list[dict[str, "SharedTensor"]]:
        """Share the parameters with other processes, in place: one dict per rank, by the layout's names.

        The call blocks, and so does the engine. A second call returns the same memory.

        Raises:
            ResourceError: shared memory is full, or memory of a GPU cannot be shared.
            EngineError: the engine has repacked a parameter, or died.
        """
        ...

    async def probe_loader(self, layout: Layout) -> LayoutError | None:
        """Compare what the engine's own loader does with `layout`, before weights are written by that layout.

        The loader gets tags in place of weights, and the weights are restored bit for bit. No request may
        run.

        Returns:
            Why weights must not be written in place; None if `layout` describes the engine.

        Raises:
            EngineError: a request is running, or the loader failed on the tags.
        """
        ...

    async def begin_swap(self, version: PolicyVersion) -> None:
        """Refuse new requests, and wait for running ones unless paused. Then parameters may be written.

        Raises:
            VersionError: `version` is not the next one.
            EngineError: a swap is in progress already.
        """
        ...

    async def load_bucket(self, bucket: "Bucket", buffer: "SharedTensor", *, first: bool, last: bool) -> None:
        """Load one part of a checkpoint through the engine's own loader, during a swap.

        A swap consists of all buckets, from the first to the last.

        Args:
            buffer: memory that holds the bucket until this returns.

        Raises:
            EngineError: the engine did not load it; the next swap starts again with the first bucket.
        """
        ...

    async def checksums(self) -> list[dict[str, int]]:
        """Checksums of the present parameters, computed by the engine's own processes; one dict per rank."""
        ...

    async def commit_swap(self, version: PolicyVersion) -> None:
        """Serve the written weights; the caller has compared the checksums before.

        An engine whose swap is not committed does not serve.

        Raises:
            VersionError: the swap was begun for another version.
            EngineError: no swap is in progress, or a cache of the old weights is left; it does not serve.
        """
        ...

    def shutdown(self) -> None:
        """End the engine's processes and remove their leftovers. A second call does nothing."""
        ...


class EngineKind(Protocol):
    """Everything about a kind of engine that needs no running one. It has no state and is picklable."""

    @property
    def name(self) -> str: ...

    @property
    def parallel(self) -> type[EngineParallel]:
        """Class of the config section rollout.parallel."""
        ...

    # A kind whose engines answer Sampling.head_tokens has `reports_heads = True`; one that takes
    # EngineSetup.fp8_weights and fp8_cache has `computes_fp8 = True`.

    def layout(self, model: ModelSpec, parallel: EngineParallel) -> Layout:
        """Which part of the model each of the parallel.tp ranks of an engine holds.

        Raises:
            LayoutError: the model does not divide over the ranks.
        """
        ...

    def sizes(self, model: ModelSpec, most: int) -> Iterator[EngineParallel]:
        """Parallel layouts worth trying for a model on up to `most` ranks; the model may not divide so."""
        ...

    def refuse(self, cfg: Config, model: ModelSpec) -> Iterator[HybridRLError]:
        """Errors for what a config asks and the engine cannot do, in addition to those of `layout`.

        The `where` of an error is a config key.
        """
        ...

    def missing(self, cfg: Config) -> Iterator[HybridRLError]:
        """Errors for what this machine lacks, if the engines of a config are to run on it.

        The `where` of an error is a config key. A command that starts no engine here does not ask.
        """
        ...

    def versions(self, cfg: Config) -> Mapping[str, str]:
        """Versions of the engine's packages in the environment in which it runs."""
        ...

    def open(self, setup: EngineSetup) -> Engine:
        """Start an engine and wait until it serves.

        Raises:
            ModelError: setup.model_folder holds no supported model.
            ConfigError: prompt and answer together may be longer than the model's positions.
            ResourceError: prompt and answer together may be longer than the key-value cache.
            EngineError: the engine did not start; it leaves nothing behind.
            DeadlineError: the engine was not ready after setup.start_timeout_s.
        """
        ...


def kind_of(name: str) -> EngineKind:
    """The kind of engine that rollout.engine names.

    If it is from outside the project, errors that it and its engines raise become UserCodeErrors.

    Raises:
        ConfigError: there is no such kind, or it lacks an attribute of EngineKind.
        UserCodeError: code outside the project raised.
    """
    where = "rollout.engine"
    found = registry.find("hybridrl.rollout", name, where=where, folders=True, has=_PARTS)
    kind: Any = called(found, name, key=where, where=where)
    if is_outside(name):
        kind = Guarded(kind, name, where=where, makes=("open",))
    return kind


def layout_in(
    kind: EngineKind, model: ModelSpec, parallel: EngineParallel, precision: str | None = None
) -> Layout:
    """The layout of a model in an engine; a LoaderLayout if the model has no table.

    Args:
        precision: rollout.precision; None for engines of models that are never trained.

    Raises:
        LayoutError: the model does not divide over the ranks, or not into blocks, or the engine has no FP8.
    """
    layout = kind.layout(model, parallel) if model.has_table else LoaderLayout(model, parallel.tp)
    return layout.in_fp8() if precision == "fp8" else layout


def working_bytes(kind: EngineKind, model: ModelSpec, parallel: EngineParallel, requests: int) -> float:
    """Bytes of rollout.memory_fraction on a GPU that an engine rank keeps for its computation, besides its
    weights and its cache. A kind that counts them has a method of this name; the others keep none.

    Args:
        requests: rollout.max_running_requests.
    """
    own = getattr(kind, "working_bytes", None)
    return own(model, parallel, requests) if own else 0.0


_PARTS = tuple(part for part in vars(EngineKind) if not part.startswith("_"))
