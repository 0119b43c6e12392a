"""Requests in the process that hosts an engine: lots of them in, answers out as they end.

SGLang is given a lot as one batch, so that its scheduler gets the whole of it at once. It answers a batch
when the last of it has ended, so a hook on its collection of answers takes each one as it ends.
"""

import asyncio
import random
import uuid
from base64 import b64decode
from collections import Counter
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sglang.srt.managers.io_struct import GenerateReqInput

from hybridrl.errors import EngineError
from hybridrl.models.vision import VisionSpec
from hybridrl.rollout.base import Answer, Request
from hybridrl.rollout.limits import refusal
from hybridrl.rollout.lots import Inbox
from hybridrl.rollout.sglang.pictures import Key, PictureInputs, banned, names, refused_pictures
from hybridrl.rollout.sglang.sizes import SPARE_TOKENS
from hybridrl.types import Finish, PolicyVersion

_KNOWN_PROMPTS = 4096
"""Most prompts that are remembered to be in the prefix cache."""


_lot: "ContextVar[Sequence[_Running] | None]" = ContextVar("lot")
"""The lot that SGLang is being given; None for prompts that nobody waits for."""


@dataclass(slots=True)
class _Running:
    """A request in progress."""

    request: Request
    # Random, because SGLang aborts every request whose id starts with the given one.
    rid: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Id of the request in SGLang."""

    sent: bool = False
    aborted: bool = False


class Serving:
    """The requests of one engine; rollout/base.py has the contracts."""

    def __init__(
        self,
        manager: Any,
        *,
        caches_prefixes: bool,
        returns_experts: bool,
        seed: int,
        vision: VisionSpec | None = None,
    ) -> None:
        """
        Args:
            manager: SGLang's TokenizerManager.
            caches_prefixes: whether the engine keeps prompts for later requests.
            seed: where the seeds of requests without one start.
            vision: the part of the model that reads pictures; None: there is none.
        """
        self._vision = vision
        self._manager, self._caches_prefixes, self._returns_experts = (
            manager,
            caches_prefixes,
            returns_experts,
        )
        self._unseeded = random.Random(seed)
        self._by_id: dict[str, _Running] = {}
        self._held: list[_Running] = []
        self._paused = False
        self._cached: set[Key] = set()
        self.inbox = Inbox()
        self.version: PolicyVersion | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        manager._collect_batch_responses = self._collect

    def start(self, requests: Sequence[Request]) -> None:
        """Take requests; on a paused engine they wait for `continue_`."""
        lot = [_Running(request) for request in requests]
        self._by_id |= {running.request.id: running for running in lot}
        accepted = []
        for running in lot:
            if found := self._refusal(running.request):
                self._end(running, found)
            else:
                accepted.append(running)
        if self._paused:
            self._held += accepted
        else:
            self._send_soon(accepted)

    def abort(self, ids: Iterable[str]) -> None:
        for running in [self._by_id[one] for one in ids if one in self._by_id]:
            running.aborted = True
            if running.sent:
                self._manager.abort_request(running.rid)
            elif running in self._held:
                self._held.remove(running)
                self._end(running, _no_answer(running.request))

    def pause(self) -> None:
        self._paused = True

    def continue_(self) -> None:
        """Send what came in the pause."""
        self._paused = False
        held, self._held = self._held, []
        self._send_soon(held)

    @property
    def _key(self) -> str:
        """Key of prefixes in the cache: a pause may keep those of older versions for running requests."""
        return str(self.version)

    def forget_prompts(self) -> None:
        """No prompt is in the prefix cache under the present version."""
        self._cached.clear()

    def _send_soon(self, lot: Sequence[_Running]) -> None:
        if lot:
            task = asyncio.get_running_loop().create_task(self._send(lot))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, lot: Sequence[_Running]) -> None:
        """Hand a lot to SGLang, and wait until the last of it has ended."""
        try:
            pictures = PictureInputs(self._vision)
            await self._prefill([running.request for running in lot], pictures)
            asked = GenerateReqInput(
                rid=[running.rid for running in lot],
                input_ids=[list(running.request.token_ids) for running in lot],
                sampling_params=[self._parameters(running.request) for running in lot],
                return_logprob=True,
                top_logprobs_num=[running.request.sampling.head_tokens for running in lot],
                return_routed_experts=self._returns_experts,
                extra_key=[self._key] * len(lot),
                **_image_data([running.request for running in lot], pictures),
            )
            _lot.set(lot)
            await anext(self._manager.generate_request(asked))
        except Exception as error:  # SGLang refused the whole lot
            for running in lot:
                self._end(running, error)

    async def _collect(self, generators: Sequence[Any]) -> list[None]:
        """In place of SGLang's method of this name, which waits for all answers of a batch."""
        lot = _lot.get()
        if lot is None:
            await asyncio.gather(*(anext(generator) for generator in generators))
            return list(await asyncio.gather(*(generator.aclose() for generator in generators)))
        for running in lot:
            running.sent = True
            if running.aborted:
                self._manager.abort_request(running.rid)
        return list(await asyncio.gather(*map(self._take, lot, generators)))

    async def _take(self, running: _Running, generator: Any) -> None:
        try:
            self._end(running, self._answer(running.request, await anext(generator)))
        except Exception as error:  # handed to the one who asked
            self._end(running, error)
        finally:
            await generator.aclose()

    def _end(self, running: _Running, outcome: Answer | Exception) -> None:
        if self._by_id.pop(running.request.id, None) is not None:
            self.inbox.put(running.request, outcome)

    def _answer(self, request: Request, answer: dict[str, Any]) -> Answer:
        described = answer["meta_info"]
        has_experts = self._returns_experts and "routed_experts" in described
        return Answer(
            id=request.id,
            token_T=np.array(answer["output_ids"], np.int32),
            logp_T=np.array([logp for logp, *_ in described["output_token_logprobs"]], np.float32),
            version_T=_versions(described, len(answer["output_ids"])),
            finish=self._finish(request, answer["output_ids"], described["finish_reason"]["type"]),
            experts_SLK=self._experts(described["routed_experts"]) if has_experts else None,
            head_TK=_head(described, request.sampling.head_tokens),
            cached_tokens=described.get("cached_tokens"),
        )

    def _finish(self, request: Request, tokens: Sequence[int], said: Finish) -> Finish:
        """Why an answer ended. SGLang calls one too long whose end token is the last that it may have."""
        ends = {*(self._manager.model_config.hf_eos_token_id or ()), *request.sampling.stop_token_ids}
        return "stop" if said == "length" and tokens and tokens[-1] in ends else said

    def _experts(self, encoded: str) -> np.ndarray:
        """Experts of an answer, int32 [tokens but the last, layers, experts of a token]."""
        config = self._manager.model_config.hf_text_config
        sizes = config.num_hidden_layers, config.num_experts_per_tok
        return np.frombuffer(b64decode(encoded), np.int32).reshape(-1, *sizes)

    def _parameters(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        return {
            **banned(request, self._vision),
            "max_new_tokens": sampling.max_response_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            # SGLang's own option is refused without a tokenizer; our scheduler has one for it.
            **({"custom_params": {"stop": list(sampling.stop)}} if sampling.stop else {}),
            "stop_token_ids": list(sampling.stop_token_ids),
            "sampling_seed": self._unseeded.getrandbits(62) if sampling.seed is None else sampling.seed,
        }

    async def _prefill(self, requests: Sequence[Request], pictures: PictureInputs) -> None:
        """Put prompts that are asked several times into the prefix cache, or each answer would compute its
        prompt."""
        if not self._caches_prefixes:
            return
        keys = [pictures.key(request) for request in requests]
        counts, first = Counter(keys), dict(zip(reversed(keys), reversed(requests), strict=True))
        new = [key for key, count in counts.items() if count > 1 and key not in self._cached]
        if not new:
            return
        if len(self._cached) + len(new) > _KNOWN_PROMPTS:
            self._cached.clear()
        self._cached.update(new)
        asked = GenerateReqInput(
            input_ids=[list(token_ids) for token_ids, _ in new],
            sampling_params={"max_new_tokens": 0, "temperature": 0.0},
            extra_key=[self._key] * len(new),
            **_image_data([first[key] for key in new], pictures),
        )
        _lot.set(None)
        await anext(self._manager.generate_request(asked))

    def _refusal(self, request: Request) -> EngineError | None:
        """Why a request cannot be answered. SGLang would refuse the whole lot, or a scheduler would end."""
        longest, vocab_size = self._manager.context_len - SPARE_TOKENS, self._manager.model_config.vocab_size
        takes = names(self._vision)
        found = refusal(request, "SGLang", vocab_size=vocab_size, longest=longest, takes=takes)
        return found or refused_pictures(request, self._vision)


def _image_data(requests: Sequence[Request], pictures: PictureInputs) -> dict[str, Any]:
    """The argument with the pictures of a lot; {} if none has any."""
    found = [pictures.data(request) for request in requests]
    return {} if all(data is None for data in found) else {"image_data": found}


def _head(described: dict[str, Any], count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Ids and log-probabilities of the likeliest tokens, [tokens of the answer, count] each."""
    if not count:
        return None
    pairs = [[pair[:2] for pair in token] for token in described.get("output_top_logprobs") or ()]
    logp_id_TK2 = np.array(pairs, np.float64).reshape(-1, count, 2)
    return logp_id_TK2[..., 1].astype(np.int32), logp_id_TK2[..., 0].astype(np.float32)


def _versions(described: dict[str, Any], num_tokens: int) -> np.ndarray:
    """Version of the weights that sampled each token, int32 [num_tokens]."""
    found = np.empty(num_tokens, np.int32)
    for span in described["weight_versions"] if num_tokens else ():
        found[span["start"] : span["end"]] = int(span["version"])
    return found


def _no_answer(request: Request) -> Answer:
    """The empty answer to a request that was aborted before SGLang got it."""
    none = np.zeros(0, np.int32)
    return Answer(
        id=request.id,
        token_T=none,
        logp_T=none.astype(np.float32),
        version_T=none,
        finish="abort",
        head_TK=_head({}, request.sampling.head_tokens),
    )
