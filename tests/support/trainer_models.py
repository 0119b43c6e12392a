"""Tiny models of every family that has more than plain layers, and what trainer ranks do with them."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import trainer_scenarios as scenarios
import trainer_values as values

from hybridrl.batch import TokenBlock
from hybridrl.config.training import ActorConfig, MoEConfig
from hybridrl.models.spec import ModelSpec, read

_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LATENT = _EXPERTS | {
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 20,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "routed_scaling_factor": 1.5,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
}
_GEMMA = {
    "head_dim": 16,
    "tie_word_embeddings": True,
    "sliding_window": 4,
    "query_pre_attn_scalar": 10,
    "pad_token_id": None,  # transformers would start its row at 0, and train it never
}
_GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_yarn": ("Qwen3", {"head_dim": 16, "rope_parameters": _YARN}),
    "qwen3_moe": ("Qwen3Moe", _EXPERTS | {"head_dim": 16, "num_experts": 4, "norm_topk_prob": True}),
    "qwen3_moe_mixed": ("Qwen3Moe", _EXPERTS | {"head_dim": 16, "num_experts": 4, "mlp_only_layers": [0]}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v2": (
        "DeepseekV2",
        _LATENT
        | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}
        | {"rope_parameters": _YARN | {"mscale": 0.9, "mscale_all_dim": 0.5}},
    ),
    "deepseek_v2_lite": ("DeepseekV2", _LATENT | {"q_lora_rank": None}),
    "deepseek_v3": (
        "DeepseekV3",
        _LATENT
        | {"n_group": 4, "topk_group": 2, "norm_topk_prob": True}
        | {"rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "latent_dense": (
        "DeepseekV3",
        _LATENT | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": values.SIZES["num_hidden_layers"]},
    ),
    "gemma2": ("Gemma2", _GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3", _GEMMA | {"layer_types": ["sliding_attention", "full_attention"]}),
}
"""transformers' name of the family, and the keys of its config.json."""


def make_model(folder: Path, kind: str, seed: int = 0, **sizes: int) -> Path:
    """A random model in `folder`/`kind`, with weights so far from 0 that every part matters."""
    import transformers

    name, extra = KINDS[kind]
    text = "Text" if name == "Gemma3" else ""
    if name == "Gemma3":
        extra = extra | {"rope_parameters": _GEMMA_ROPE}
    options = {"tie_word_embeddings": False, **values.SIZES, **extra, **sizes}
    config = getattr(transformers, f"{name}{text}Config")(**options)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config).float()
    with torch.no_grad():
        for weight in [*model.parameters(), *_biases(model)]:
            if weight.dim() == 1:
                weight.add_(0.1 * torch.randn_like(weight))
            else:
                weight.mul_(4.0)
    model.save_pretrained(folder / kind)
    return folder / kind


def load_plain(folder: Path) -> Any:
    """The model in transformers, with attention and experts that are written out in torch."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )


def _biases(model: torch.nn.Module) -> list[torch.Tensor]:
    """Those that choose experts: they are no parameters."""
    return [buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")]


STEPS = 2


def learn(
    rank: int,
    rendezvous: scenarios.Rendezvous,
    folders: list[Path],
    shape: scenarios.Shape,
    cuts: tuple[int, ...],
    out: Path,
) -> list[dict[str, Any]]:
    """Several models after one another: an export, log-probabilities, steps on one minibatch, an export."""
    found = []
    for folder in folders:
        with scenarios.policy(rank, rendezvous, folder, shape) as trained:
            trained.export(out / "imported" / folder.name)
            logp_T = trained.logp(values.make_block())
            minibatches = [scenarios.split(i, scenarios.dp_of(shape), cuts) for i in range(STEPS)]
            played = scenarios.play(trained, values.make_batch(minibatches))
            trained.export(out / "trained" / folder.name)
        found.append(played | {"logp_T": logp_T, "out": out})
    return found


def learn_plainly(folder: Path, out: Path) -> dict[str, Any]:
    """The same by transformers and torch, one sequence at a time."""
    block, model = values.make_block(), load_plain(folder)
    setup = values.make_setup(0, "", folder, (1, 1, 1))
    with torch.no_grad():
        logp = torch.cat(values.plain_logp(model, block, setup.temperature)).numpy()
    advantage_N = np.asarray(values.make_batch([]).advantage_N)
    steps = list(values.plain_steps(model, block, advantage_N, setup, STEPS))
    model.save_pretrained(out / folder.name)
    return {"logp": logp, "steps": steps, "weights": out / folder.name}


def route(
    rank: int,
    rendezvous: scenarios.Rendezvous,
    folder: Path,
    shape: scenarios.Shape,
    cuts: tuple[int, ...],
    actor: Any,
) -> dict[str, Any]:
    """Two epochs over the same rows: the second in whole, dealt to the ranks in the opposite order."""
    dp = scenarios.dp_of(shape)
    first, whole = scenarios.split(0, dp, cuts), scenarios.split(1, dp, ())
    minibatches = [first, replace(whole, rows=whole.rows[::-1])]
    with scenarios.policy(rank, rendezvous, folder, shape, actor=actor) as trained:
        batch = values.make_batch(minibatches)
        if actor.moe.router_replay == "rollout":
            batch = batch.with_blocks(engine_chose(block, read(folder)) for block in batch.blocks)
        measured = trained.load(batch)
        reports, counts = [], []
        for minibatch in minibatches:
            reports.append(asdict(trained.step(minibatch.index)))
            counts.append([router.count_E.tolist() for router in cast(Any, trained._routing)._routers])
    return {"measured": measured, "reports": reports, "counts": np.array(counts)}


def engine_chose(block: TokenBlock, model: ModelSpec, seed: int = 3) -> TokenBlock:
    """The block with experts that no router would choose, and none for the last token of each trajectory."""
    draw = np.random.default_rng(seed)
    scores = draw.random((len(block.token_T), model.num_layers, model.num_experts))
    experts_TLK = scores.argsort(axis=2)[..., : model.experts_per_token].astype(np.uint8)
    experts_TLK[block.start_N[1:] - 1] = 255
    return replace(block, columns={**block.columns, "experts": experts_TLK})


def make_actor(moe: dict[str, Any], **options: Any) -> ActorConfig:
    return values.make_actor(**options).model_copy(update={"moe": MoEConfig(**moe)})
