"""Models, prompts and oracles for tests of the real SGLang engine."""

import asyncio
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from hybridrl.rollout.sglang.engine import EngineSetup
from hybridrl.types import Prompt, Sampling

ROOT = Path(__file__).parents[2]

END = 2
"""The end token in the model's own config."""

TOLERANCE = 2e-5
"""Nats between two fp32 programs, as DESIGN.md promises."""


def model(seed):
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=120,
        hidden_size=64,
        intermediate_size=90,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=END,
    )
    return Qwen3ForCausalLM(config).float().eval()


def setup(folder, **options):
    """Of an engine with the model in `folder`, and its log beside it."""
    given = {
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
    return Sampling(**{"num_samples": 1, "max_response_tokens": 8, "seed": 11} | options)


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
        logp = torch.from_numpy(block.rollout_logp_T[row].copy())
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
    """What the engine holds when it has the weights of a transformers model, by SGLang's names."""
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
