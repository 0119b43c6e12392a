"""Models, prompts and oracles for tests of real engines."""

import asyncio
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from hybridrl.layout.hf import HFLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.models import spec
from hybridrl.reshard.agreement import difference, expected
from hybridrl.reshard.buckets import BucketWriter, split
from hybridrl.reshard.checkpoint import load_hf
from hybridrl.reshard.swap import SwapWriter
from hybridrl.reshard.transports import shm
from hybridrl.rollout.base import EngineSetup
from hybridrl.rollout.sglang.sizes import SGLangParallel
from hybridrl.types import Prompt, Sampling

ROOT = Path(__file__).parents[2]

END = 2
"""The end token in the model's own config."""

TOLERANCE = 2e-5
"""Nats between two fp32 programs, as DESIGN.md promises."""


def model(seed, **changes):
    """
    Args:
        changes: keys of its config.json.
    """
    torch.manual_seed(seed)
    given = {
        "vocab_size": 120,
        "hidden_size": 64,
        "intermediate_size": 90,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "eos_token_id": END,
    }
    config = Qwen3Config(**given | changes)
    return Qwen3ForCausalLM(config).float().eval()


def mixture(seed, **changes):
    """A model with experts."""
    torch.manual_seed(seed)
    given: dict[str, Any] = {
        "vocab_size": 120,
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "eos_token_id": END,
    }
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**given | changes)).float().eval()


def saved_mixture(folder, seed):
    """A model with experts, saved in a folder; returns both."""
    made = mixture(seed)
    made.save_pretrained(folder)
    return made, folder


def setup(folder, tp=1, **options):
    """Of an engine with the model in `folder`, and its log beside it."""
    given: dict[str, Any] = {
        "parallel": SGLangParallel(tp=tp),
        "model_folder": str(folder),
        "log_path": str(folder / "engine.log"),
        "max_prompt_tokens": 96,
        "max_response_tokens": 32,
        "kv_cache_tokens": 16384,
        "seed": 3,
    }
    return EngineSetup(**given | options)


def prompts(count, length=6, seed=0):
    random = np.random.default_rng(seed)
    return [Prompt(f"train/{i}", tuple(random.integers(3, 120, length).tolist()), {}) for i in range(count)]


def sampling(**options):
    given: dict[str, Any] = {"num_samples": 1, "max_response_tokens": 8, "seed": 11}
    return Sampling(**given | options)


def answer(engine, prompts, sampling):
    return asyncio.run(engine.generate(prompts, sampling))


def responses(block):
    return [block.token_T[block.row(i)][block.prompt_tokens_N[i] :].tolist() for i in range(len(block))]


def hf_logp(model, tokens, temperature):
    """[len(tokens)]: of each token given those before it; 0 for the first."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, :-1] / temperature
    return torch.cat(
        [torch.zeros(1), logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]]
    )


def largest_difference(model, block, temperature):
    """Between the engine's and transformers' log-probabilities of every trained token."""
    found = 0.0
    for i in range(len(block)):
        row = block.row(i)
        mask = torch.from_numpy(block.loss_mask_T[row].copy())
        expected = hf_logp(model, block.token_T[row].tolist(), temperature)
        logp = torch.from_numpy(block.columns["rollout_logp"][row].copy())
        found = max(found, float((logp - expected)[mask].abs().max()))
        assert not logp[~mask].any()
    return found


def hf_greedy(model, prompt, length):
    tokens = list(prompt.token_ids)
    with torch.no_grad():
        for _ in range(length):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] == END:
                break
    return tokens[len(prompt.token_ids) :]


def engine_weights(model):
    """What an engine holds with the weights of a transformers model, by the names of SGLang and vLLM."""
    weights = dict(model.named_parameters())
    found = {}
    for name, weight in weights.items():
        if name.endswith("q_proj.weight"):
            parts = [weights[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            found[name.replace("q_proj", "qkv_proj")] = torch.cat(parts)
        elif name.endswith("gate_proj.weight"):
            parts = [weight, weights[name.replace("gate_proj", "up_proj")]]
            found[name.replace("gate_proj", "gate_up_proj")] = torch.cat(parts)
        elif name == "model.embed_tokens.weight":
            found[name] = torch.nn.functional.pad(weight, (0, 0, 0, 128 - len(weight)))
        elif not any(part in name for part in ("k_proj", "v_proj", "up_proj")):
            found[name] = weight
    return {name: weight.detach() for name, weight in found.items()}


WRITER = """
import pickle, sys
from hybridrl.reshard.swap import SwapWriter
from hybridrl.reshard.transports import shm
shared, weights = pickle.load(sys.stdin.buffer)
for name, weight in weights.items():
    shm.attach(shared[name]).copy_(weight)
"""


def write(engine, weights):
    """By another process, as a trainer rank does it."""
    (shared,) = engine.export_parameters()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    message = pickle.dumps((shared, weights))
    subprocess.run([sys.executable, "-c", WRITER], input=message, env=environment, check=True)


def swap(engine, weights):
    async def run():
        version = (engine.session.version or 0) + 1
        await engine.begin_swap(version)
        write(engine, weights)
        found = await engine.checksums()
        await engine.commit_swap(version)
        return version, found

    return asyncio.run(run())


def swap_in_place(engine, source, target, folder):
    """Give an engine of layout `target` the weights in `folder` as the ranks of a trainer's layout do: each
    writes its boxes."""
    exported = engine.export_parameters()
    writers = [SwapWriter(source, rank, [(target, exported)]) for rank in range(source.world_size)]
    assert len({writer.plan_hash for writer in writers}) == 1

    async def run():
        version = (engine.session.version or 0) + 1
        await engine.begin_swap(version)
        written = [writer.write(shard(source, rank, folder)) for rank, writer in enumerate(writers)]
        held = {(0, r, n): c for r, sums in enumerate(await engine.checksums()) for n, c in sums.items()}
        assert difference(expected(share.checksums for share in written), held) is None
        await engine.commit_swap(version)

    asyncio.run(run())


def shard(layout, rank, folder):
    """What a rank holds of a checkpoint."""
    tensors = {name: torch.empty(shard.shape) for name, shard in layout.shards(rank).items()}
    load_hf(folder, layout, rank, tensors)
    return tensors


def held(engine):
    """A copy of an engine's parameters, by tensor-parallel rank."""
    return [
        {name: shm.attach(handle).clone() for name, handle in shared.items()}
        for shared in engine.export_parameters()
    ]


def assert_in_place_is_what_the_loader_loads(engine, source, target, before, after):
    """Two folders: the engine's own loader gives it `after`; `before` comes between; then `source` writes it.

    Answers must follow.
    """
    swap_through_loader(engine, after[1], limit_bytes=1 << 20)
    loaded = held(engine)
    swap_in_place(engine, source, target, before[1])
    asked = prompts(4)
    assert responses(answer(engine, asked, sampling(temperature=0.0))[1]) == greedy(before[0], asked)
    swap_in_place(engine, source, target, after[1])
    for ours, theirs in zip(held(engine), loaded, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert responses(answer(engine, asked, sampling(temperature=0.0))[1]) == greedy(after[0], asked)


def greedy(model, prompts):
    return [hf_greedy(model, prompt, 8) for prompt in prompts]


def swap_through_loader(engine, folder, limit_bytes):
    """Give an engine the weights in `folder` in buckets, as a trainer rank of its own would; how many."""
    layout = MegatronLayout(spec.read(folder))
    tensors = shard(layout, 0, folder)
    buckets = split(HFLayout(layout.spec), torch.float32, limit_bytes)
    buffer = torch.empty(max(bucket.nbytes for bucket in buckets), dtype=torch.uint8)
    shared = shm.export(buffer)
    writer = BucketWriter(layout, 0, buckets, buffer)

    async def run():
        version = (engine.session.version or 0) + 1
        await engine.begin_swap(version)
        for i, bucket in enumerate(buckets):
            writer.write(i, tensors)
            await engine.load_bucket(bucket, shared, first=i == 0, last=i == len(buckets) - 1)
        await engine.commit_swap(version)

    asyncio.run(run())
    return len(buckets)
