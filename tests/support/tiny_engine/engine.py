"""An engine in its owner's process, with any of models.py. Of a model folder of any family it holds all
parameters, as a checkpoint has them.
"""

import asyncio
import json
import threading
from pathlib import Path

import numpy as np
import torch

from hybridrl.batch import TokenBlock
from hybridrl.errors import ConfigError, EngineError, LayoutError
from hybridrl.layout.hf import HFLayout
from hybridrl.models import spec
from hybridrl.reshard.checkpoint import load_hf
from hybridrl.reshard.checksum import checksum
from hybridrl.reshard.transports import shm
from hybridrl.reshard.transports.base import attach
from hybridrl.rollout.base import Answer
from hybridrl.rollout.draw import draw, truncated
from hybridrl.rollout.probe import LoaderProbe
from hybridrl.rollout.session import EngineSession
from hybridrl.types import Trajectory


class TinyEngine:
    """Engine. Its cache has the logits after every text that it read, of the weights that it serves."""

    def __init__(self, setup, make):
        """
        Args:
            make: (model folder, parameters) -> what gives the logits after a text.
        """
        model = spec.read(setup.model_folder)
        positions = setup.max_prompt_tokens + setup.max_response_tokens
        if positions > model.max_positions:
            raise ConfigError(f"{positions} tokens are more than the {model.max_positions} of the model")
        self.setup, self.session = setup, EngineSession(setup.version, name="tiny engine")
        self.layout = HFLayout(model)
        self.parameters = {name: torch.empty(s.shape) for name, s in self.layout.shards(0).items()}
        load_hf(setup.model_folder, self.layout, 0, self.parameters)
        self._ends = _end_tokens(setup.model_folder)
        self._model = make(setup.model_folder, self.parameters)
        self._cache, self._has_cache, self._paused = {}, True, False
        self._requests, self._aborted, self._running = set(), set(), 0
        self._unseeded = np.random.default_rng(setup.seed)
        self._lock = threading.Lock()  # callers may be on several threads

    # Answers

    async def generate(self, prompts, sampling):
        version = self.session.require_serving()
        seed = int(self._unseeded.integers(2**31)) if sampling.seed is None else sampling.seed
        asked = [prompt.token_ids for prompt in prompts for _ in range(sampling.num_samples)]
        found = await asyncio.gather(
            *(self._answer(f"{id(asked)}/{i}", ids, sampling, seed + i) for i, ids in enumerate(asked))
        )
        if any((answer.version_T != version).any() for answer in found):
            raise EngineError(f"weights of version {version} were swapped while they answered")
        block = TokenBlock.from_answers(
            asked, [a.token_T.tolist() for a in found], [a.logp_T.tolist() for a in found], version
        )
        rows = iter(
            Trajectory(i, len(ids), len(a.token_T), len(a.token_T), a.finish, version)
            for i, (ids, a) in enumerate(zip(asked, found, strict=True))
        )
        return [[next(rows) for _ in range(sampling.num_samples)] for _ in prompts], block

    async def request(self, request):
        self.session.require_serving()
        if request.sampling.num_samples != 1 or request.arrays:
            raise EngineError("a request has one answer and no arrays")
        with self._lock:
            if request.id in self._requests:
                raise EngineError(f"request {request.id!r} runs already")
            self._requests.add(request.id)
        try:
            seed = request.sampling.seed
            seed = int(self._unseeded.integers(2**31)) if seed is None else seed
            return await self._answer(request.id, request.token_ids, request.sampling, seed)
        finally:
            with self._lock:
                self._requests.discard(request.id)
                self._aborted.discard(request.id)

    async def abort(self, ids):
        with self._lock:
            self._aborted |= self._requests & set(ids)

    async def pause(self, *, keep_cache=False):
        """Logits are computed again afterwards, as SGLang's mode retract does it: the cache has nothing that
        a request which goes on would need, so it makes no difference to keep it."""
        self._paused = True
        if not keep_cache:
            self._cache.clear()

    async def continue_(self):
        self.session.require_serving()
        self._paused = False

    async def release_cache(self):
        await self._running_to_end()
        self._cache.clear()
        self._has_cache = False

    async def resume_cache(self):
        self._has_cache = True

    # Weights

    def export_parameters(self):
        return [{name: shm.export(tensor) for name, tensor in self.parameters.items()}]

    async def probe_loader(self, layout):
        if self._running:
            raise EngineError("requests run")
        kept = {name: tensor.clone() for name, tensor in self.parameters.items()}
        try:
            LoaderProbe(layout, 0).run(self._load, lambda: self.parameters)
        except LayoutError as difference:
            return difference
        finally:
            self._load(kept.items())
        return None

    async def begin_swap(self, version):
        self.session.quiesce(version)
        await self._running_to_end()
        self.session.begin_write()

    async def load_bucket(self, bucket, buffer, *, first, last):
        self._load(bucket.views(attach(buffer)).items())

    async def checksums(self):
        return [{name: checksum(tensor) for name, tensor in self.parameters.items()}]

    async def commit_swap(self, version):
        self.session.commit(version)
        self._cache.clear()
        self._has_cache = True
        self.session.serve()

    def shutdown(self):
        self.parameters.clear()

    def _load(self, tensors):
        for name, tensor in tensors:
            if name in self.parameters:
                self.parameters[name].copy_(tensor)

    async def _running_to_end(self):
        while self._running and not self._paused:
            await asyncio.sleep(0)

    # Tokens

    async def _answer(self, name, prompt, sampling, seed):
        self._refuse(prompt, sampling)
        tokens, logps, versions, finish = [], [], [], None
        self._running += 1
        try:
            while finish is None:
                await asyncio.sleep(0.001 if self._paused else 0)
                if name in self._aborted:
                    finish = "abort"
                elif not self._paused:
                    token, logp = self._sample((*prompt, *tokens), sampling, seed)
                    tokens.append(token)
                    logps.append(logp)
                    versions.append(self.session.version)  # those that run may end before a swap
                    finish = self._finish(tokens, sampling)
        finally:
            self._running -= 1
        return Answer(
            id=name,
            token_T=np.array(tokens, np.int32),
            logp_T=np.array(logps, np.float32),
            version_T=np.array(versions, np.int32),
            finish=finish,
        )

    def _refuse(self, prompt, sampling):
        size = self.layout.spec.vocab_size
        longest = self.setup.max_prompt_tokens + self.setup.max_response_tokens
        if not prompt or not 0 <= min(prompt) <= max(prompt) < size:
            raise EngineError(f"a prompt is empty or has a token outside the model's {size}")
        if len(prompt) + sampling.max_response_tokens > longest:
            raise EngineError(f"a request of {len(prompt)} + {sampling.max_response_tokens} tokens")
        if not self._has_cache:
            raise EngineError("the cache is given back")

    def _finish(self, tokens, sampling):
        if tokens[-1] in (*self._ends, *sampling.stop_token_ids):
            return "stop"
        return "length" if len(tokens) == sampling.max_response_tokens else None

    def _sample(self, text, sampling, seed):
        """The next token by a draw that depends on the seed and its place only, and its log-probability."""
        if text not in self._cache:
            self._cache[text] = self._model.logits(text)
        logits = self._cache[text]
        logp = (logits / (sampling.temperature or 1.0)).log_softmax(-1)
        if not sampling.temperature:
            token = int(logits.argmax())
        else:
            kept = sampling.top_k if sampling.top_k > 0 else len(logits)
            weight = truncated(logp.exp()[None], torch.tensor([kept]), torch.tensor([sampling.top_p]), None)
            token = int(draw(weight, torch.tensor([seed]), torch.tensor([len(text)])))
        return token, float(logp[token])


def _end_tokens(folder):
    end = json.loads(Path(folder, "config.json").read_text()).get("eos_token_id")
    return () if end is None else tuple(np.atleast_1d(end).tolist())
