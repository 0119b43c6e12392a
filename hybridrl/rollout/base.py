"""What an engine is to the rest of the project: how one is started, what it does, and where it is found.

A folder beside this file is a kind of engine, and its name is the name in a config (rollout.engine): its
package registers an EngineKind. A class outside of the project is named as module:Kind. Neither its module
nor this file imports numpy, torch or the engine, since configs are loaded and plans are made with them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from hybridrl import registry
from hybridrl.config.rollout import EngineParallel
from hybridrl.config.schema import Config
from hybridrl.errors import HybridRLError, LayoutError
from hybridrl.layout.base import Layout
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
    """What an engine is started with."""

    model_folder: str
    """Hugging Face format; its weights are those of `version`."""

    log_path: str
    """File that takes everything the engine's processes print."""

    parallel: EngineParallel
    """Sizes, of the class that the kind has."""

    seed: int = 0
    max_prompt_tokens: int = 1024
    max_response_tokens: int = 1024
    kv_cache_tokens: int | None = None
    """None: by memory_fraction on a GPU, as the kind has it on CPU."""

    memory_fraction: float = 0.8
    max_running_requests: int = 256
    version: PolicyVersion | None = 0
    """None: the weights are of no version, so that the engine serves only after its first swap."""

    start_timeout_s: float = 600.0
    returns_experts: bool = False
    """Answers say which experts each token went to."""

    parts: int = 1
    """Of the engine, each on a node of its own with its share of the ranks. They start together."""

    part: int = 0
    """Which of them this is. The first answers; the others only start and end."""

    rendezvous: str = ""
    """host:port of the first part, where several find each other; and the six ports that follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One answer that is asked for."""

    id: str
    """No other request that runs has it."""

    token_ids: tuple[int, ...]
    sampling: Sampling
    """num_samples is 1; the answer is drawn from `seed` and depends on no other request."""

    arrays: Mapping[str, "np.ndarray"] = field(default_factory=dict)
    """What the model takes beside tokens, such as pictures, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a request was answered with.

    Shape letters: T its tokens, S those of prompt and answer, L layers, K experts of a token.
    """

    id: str
    token_T: "np.ndarray"
    """int32; an end token is among them."""

    logp_T: "np.ndarray"
    """float32, as the column rollout_logp of a TokenBlock."""

    version_T: "np.ndarray"
    """int32: of the weights that drew the token; several after a swap between pause and continue."""

    finish: Finish
    """"abort": somebody asked for it; these are the tokens up to then."""

    experts_SLK: "np.ndarray | None" = None
    """int32, without the last token. None: nobody asked, or the answer was aborted."""


class Engine(Protocol):
    """A running engine. Any thread or loop may ask for answers; one caller makes the swaps, in order."""

    @property
    def session(self) -> EngineSession: ...

    async def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling
    ) -> tuple[list[list[Trajectory]], "TokenBlock"]:
        """Answer prompts: token ids in, token ids out.

        Args:
            prompts: at least one.
            sampling: answer i, counted over prompts and samples, is drawn from seed + i; with seed None from
                seeds of the engine's. The model's own end tokens end an answer, besides stop_token_ids.

        Returns:
            (trajectories, block): num_samples trajectories a prompt, in order, and their tokens. A stop
            token is part of its answer, has a log-probability and is trained on. Log-probabilities are
            those of the whole vocabulary at the sampling temperature, before top-p and top-k; for
            temperature 0, at 1.

        Raises:
            EngineError: a swap is under way or failed, the engine died, a prompt does not fit, or weights
                were swapped while it answered.
        """
        ...

    async def request(self, request: Request) -> Answer:
        """Answer one prompt, as `generate` does with the same seed. A paused engine answers when it goes on.

        Raises:
            EngineError: as `generate`, without the last; or a request of this id runs, asks for several
                answers, or brings arrays that the engine does not take.
        """
        ...

    async def abort(self, ids: Sequence[str]) -> None:
        """End these requests early, also on a paused engine; ids that do not run are ignored."""
        ...

    async def pause(self) -> None:
        """Sample nothing until `continue_`. Requests stay, without the cache of their tokens, so that weights
        may be swapped meanwhile: what is sampled later has the probability that the new weights give it.
        """
        ...

    async def continue_(self) -> None:
        """
        Raises:
            EngineError: a swap is under way or failed.
        """
        ...

    async def release_cache(self) -> None:
        """Give back the memory that only answering needs, on a GPU, until `resume_cache` or a commit.

        Until then no request may come; those that run end first, unless the engine is paused.
        """
        ...

    async def resume_cache(self) -> None: ...

    def export_parameters(self) -> list[dict[str, "SharedTensor"]]:
        """Let other processes reach the parameters, in place. One dict a rank, by the layout's names.

        Blocks, and so does the engine. A second call gives the same memory again.

        Raises:
            ResourceError: shared memory is full, or memory of a GPU cannot be shared.
            EngineError: a parameter does not lie as the model has it, or the engine died.
        """
        ...

    async def probe_loader(self, layout: Layout) -> LayoutError | None:
        """Compare what the engine's own loader does with `layout`, before anybody writes by it.

        The loader takes tags in place of weights, which are restored bit for bit. No request may run.

        Returns:
            Why weights must not be written in place; None: `layout` is that of the engine.

        Raises:
            EngineError: a request runs, or the loader failed on the tags.
        """
        ...

    async def begin_swap(self, version: PolicyVersion) -> None:
        """Refuse new requests and wait for those that run, unless paused; then parameters may be written.

        Raises:
            VersionError: `version` is not the next one.
            EngineError: a swap is under way already.
        """
        ...

    async def load_bucket(self, bucket: "Bucket", buffer: "SharedTensor", *, first: bool, last: bool) -> None:
        """Take a part of a checkpoint through the engine's own loader, during a swap; all parts are a swap.

        Args:
            buffer: holds the bucket until this returns.

        Raises:
            EngineError: the engine did not take it; a later swap repeats from the first bucket.
        """
        ...

    async def checksums(self) -> list[dict[str, int]]:
        """Of what the parameters hold now, as the engine's own processes read it; one dict a rank."""
        ...

    async def commit_swap(self, version: PolicyVersion) -> None:
        """Serve the weights that were written, once their checksums are equal. A swap left open never serves.

        Raises:
            VersionError: the swap was begun for another version.
            EngineError: no swap is under way, or a cache of the old weights is left; it does not serve.
        """
        ...

    def shutdown(self) -> None:
        """End the engine's processes and remove what they leave behind. Repeating it is free."""
        ...


class EngineKind(Protocol):
    """What there is to know of a kind of engine without starting one. It has no state, and may be pickled."""

    @property
    def name(self) -> str: ...

    @property
    def parallel(self) -> type[EngineParallel]:
        """The section rollout.parallel."""
        ...

    def layout(self, model: ModelSpec, parallel: EngineParallel) -> Layout:
        """Which part of the model each rank of an engine holds; it has as many ranks as parallel.tp.

        Raises:
            LayoutError: the model does not divide so.
        """
        ...

    def sizes(self, model: ModelSpec, most: int) -> Iterator[EngineParallel]:
        """Sizes worth trying for a model, with up to `most` ranks; the model need not divide so."""
        ...

    def refuse(self, cfg: Config, model: ModelSpec) -> Iterator[HybridRLError]:
        """What the engine cannot do that a config asks of it, beside what `layout` refuses. The place of an
        error is a key.
        """
        ...

    def versions(self) -> Mapping[str, str]:
        """Packages that the engine consists of, in the environment that it runs in."""
        ...

    def open(self, setup: EngineSetup) -> Engine:
        """Start an engine and wait until it serves.

        Raises:
            ModelError: setup.model_folder holds no model that a table describes.
            ConfigError: a prompt and an answer together are longer than the model's positions.
            ResourceError: they are larger than the key-value cache.
            EngineError: it did not start; nothing of it is left behind.
            DeadlineError: it was not up after setup.start_timeout_s.
        """
        ...


def kind_of(name: str) -> EngineKind:
    """The kind of engine that rollout.engine names. One from outside the project, and the engines that it
    opens, say so when they fail.

    Raises:
        ConfigError: there is none, or it lacks a part of an EngineKind.
        UserCodeError: code outside raises.
    """
    where = "rollout.engine"
    found = registry.find("hybridrl.rollout", name, where=where, folders=True, has=_PARTS)
    kind: Any = called(found, name, key=where, where=where)
    if is_outside(name):
        kind = Guarded(kind, name, where=where, makes=("open",))
    return kind


_PARTS = tuple(part for part in vars(EngineKind) if not part.startswith("_"))
