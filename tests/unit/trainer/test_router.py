"""Experts of a token and their weights, against loops over tokens; penalties, against their formulas."""

import hybridrl.trainer.megatron  # noqa: F401  # isort: skip  # makes Megatron importable on a CPU

import math
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.transformer.moe import router as megatron
from megatron.core.transformer.transformer_config import TransformerConfig
from model_values import tiny
from torch.testing import assert_close

from hybridrl.models.spec import ModelSpec
from hybridrl.trainer.experts import (
    Choices,
    Parts,
    Penalties,
    choose,
    copies_of_tokens,
    penalty,
    scores,
    weigh,
)
from hybridrl.trainer.megatron.router import Router
from hybridrl.trainer.places import SharedPrompt

TOKENS, EXPERTS = 9, 12


@st.composite
def routers(draw) -> ModelSpec:
    groups = draw(st.sampled_from([1, 3, 4]))
    top_groups = draw(st.integers(1, groups))
    return tiny(
        "deepseek_v3",
        num_experts=EXPERTS,
        router_score=draw(st.sampled_from(["softmax", "sigmoid"])),
        router_groups=groups,
        router_top_groups=top_groups,
        experts_per_token=draw(st.integers(1, min(4, EXPERTS // groups * top_groups))),
        router_normalizes=draw(st.booleans()),
        router_scale=draw(st.sampled_from([1.0, 2.5])),
    )


def route(model: ModelSpec, logits: list[float], bias: list[float]) -> dict[int, float]:
    """Weight of each expert that a token goes to."""
    if model.router_score == "sigmoid":
        score = [1 / (1 + math.exp(-x)) for x in logits]
    else:
        score = [math.exp(x) / sum(map(math.exp, logits)) for x in logits]
    merit = [s + b for s, b in zip(score, bias, strict=True)]
    size = EXPERTS // model.router_groups
    groups = [range(g * size, (g + 1) * size) for g in range(model.router_groups)]
    best = 2 if model.router_score == "sigmoid" else 1
    groups.sort(key=lambda group: -sum(sorted((merit[e] for e in group), reverse=True)[:best]))
    candidates = [e for group in groups[: model.router_top_groups] for e in group]
    chosen = sorted(candidates, key=lambda e: -merit[e])[: model.experts_per_token]
    total = sum(score[e] for e in chosen) if model.router_normalizes else 1.0
    return {e: model.router_scale * score[e] / total for e in chosen}


@given(routers(), st.integers(0, 2**31))
def test_choices_and_weights_equal_a_loop_over_tokens(model, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_NE = torch.randn(TOKENS, EXPERTS, generator=generator)
    bias_E = 0.3 * torch.randn(EXPERTS, generator=generator)
    score_NE = scores(model, logits_NE)
    chosen_NK = choose(model, score_NE, bias_E)
    weight_NK = weigh(model, score_NE, chosen_NK)
    for n in range(TOKENS):
        expected = route(model, logits_NE[n].tolist(), bias_E.tolist())
        assert sorted(chosen_NK[n].tolist()) == sorted(expected)
        for e, weight in zip(chosen_NK[n].tolist(), weight_NK[n].tolist(), strict=True):
            assert weight == pytest.approx(expected[e], rel=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Iterator[dist.ProcessGroup]:
    """A group of this process."""
    rendezvous = tmp_path_factory.mktemp("group") / "meet"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_penalties_are_sums_over_sequences_whatever_shares_the_microbatch(alone) -> None:
    logits_NE = torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(3)).requires_grad_()
    model = tiny("deepseek_v3", num_experts=EXPERTS, experts_per_token=3, router_score="sigmoid")
    score_NE = scores(model, logits_NE)
    map_NE = torch.zeros(TOKENS, EXPERTS, dtype=torch.bool)
    map_NE.scatter_(1, choose(model, score_NE, None), True)
    seq_N = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    found = penalty(Penalties(0.5, 0.25), whole(seq_N), seq_N, logits_NE, score_NE, map_NE, alone)

    balance, z = torch.zeros(()), torch.zeros(())
    for rows in (slice(0, 3), slice(3, 5), slice(5, 9)):
        likely_E = (score_NE[rows] / score_NE[rows].sum(1, keepdim=True)).mean(0)
        often_E = map_NE[rows].float().mean(0) * EXPERTS / 3
        balance = balance + (often_E * likely_E).sum()
        z = z + logits_NE[rows].logsumexp(1).square().mean()
    expected = 0.5 * balance + 0.25 * z
    assert_close(found, expected)
    assert_close(*(torch.autograd.grad(x, logits_NE, retain_graph=True)[0] for x in (found, expected)))

    apart = [
        penalty(
            Penalties(0.5, 0.25),
            whole(seq_N[r] - seq_N[r][0]),
            seq_N[r] - seq_N[r][0],
            logits_NE[r],
            score_NE[r],
            map_NE[r],
            alone,
        )
        for r in (slice(0, 5), slice(5, 9))
    ]
    assert_close(sum(apart), found)


def whole(seq_N: torch.Tensor) -> Parts:
    """Each sequence is a trajectory."""
    number_S = torch.arange(int(seq_N.max()) + 1)
    return Parts(seq_N, number_S, number_S)


def test_a_shared_prompt_is_penalised_as_a_part_of_each_of_its_trajectories(alone) -> None:
    """Tokens 0 and 1 are a prompt of two answers, the last trajectory is whole."""
    logits_NE = torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(3)).requires_grad_()
    model = tiny("deepseek_v3", num_experts=EXPERTS, experts_per_token=3, router_score="softmax")
    packing = SimpleNamespace(
        source_T=torch.arange(TOKENS),
        position_T=torch.tensor([0, 1, 2, 2, 3, 4, 0, 1, 2]),
        shared=(SharedPrompt(2, ((1, 1), (1, 3)), (100, 200)),),
        runs=((1, 3),),
    )
    shared = Parts.of(packing, 1)
    assert shared.answers_of(shared.of_T).tolist() == [2, 2, 1, 1, 1, 1, 1, 1, 1]
    twice = torch.tensor([0, 1, 2, 0, 1, 3, 4, 5, 6, 7, 8])  # what whole trajectories would be
    found, expected = (
        penalty(Penalties(0.5, 0.25), parts, parts.of_T, *routed(model, logits_NE[index]), alone)
        for parts, index in (
            (shared, torch.arange(TOKENS)),
            (whole(torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2])), twice),
        )
    )
    assert_close(found, expected)
    assert_close(*(torch.autograd.grad(x, logits_NE)[0] for x in (found, expected)))
    [copies] = copies_of_tokens(packing, 1)
    assert copies.tolist() == [200, 201, -1, -1, -1, -1, -1, -1, -1]


def routed(model: ModelSpec, logits_NE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, scores, and whether an expert was chosen."""
    score_NE = scores(model, logits_NE)
    map_NE = torch.zeros_like(score_NE, dtype=torch.bool)
    return logits_NE, score_NE, map_NE.scatter(1, choose(model, score_NE, None), True)


def test_kept_choices_come_back_in_any_order_and_filler_chooses_itself() -> None:
    choices = Choices(6, 2, torch.device("cpu"))
    first = torch.tensor([[0, 1], [2, 3], [4, 5]])
    assert choices.settle(torch.tensor([4, -1, 1]), first).equal(first)
    choices.complete(None)
    other = torch.tensor([[9, 9], [8, 8], [7, 7], [6, 6]])
    again = choices.settle(torch.tensor([1, 4, -1, 3]), other)
    assert again.tolist() == [[4, 5], [0, 1], [7, 7], [6, 6]], "nothing was kept of token 3"


def test_the_choices_for_a_shared_prompt_are_kept_for_all_of_its_trajectories() -> None:
    choices = Choices(8, 2, torch.device("cpu"))
    choices.settle(torch.tensor([0, 1]), torch.tensor([[0, 1], [2, 3]]), [torch.tensor([4, -1])])
    choices.complete(None)
    again = choices.settle(torch.tensor([4, 1, 5]), torch.full((3, 2), 9))
    assert again.tolist() == [[0, 1], [2, 3], [9, 9]]


def test_what_newer_releases_of_megatron_tell_a_router_reaches_megatrons_own(monkeypatch) -> None:
    """Its layers build routers by keyword, and 0.19 has one more than 0.16."""
    told, build = {}, megatron.Router.__init__

    def newer(router, config, pg_collection=None, is_mtp_layer=False) -> None:
        build(router, config, pg_collection)
        told["is_mtp_layer"] = is_mtp_layer

    monkeypatch.setattr(megatron.Router, "__init__", newer)
    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2, num_moe_experts=EXPERTS)
    groups = SimpleNamespace(tp=None, cp=None, tp_cp=None, tp_dp_cp=None)
    place = partial(Router, model=tiny("deepseek_v3", num_experts=EXPERTS, experts_per_token=3))
    router = place(config=config, pg_collection=groups, is_mtp_layer=True)
    assert told == {"is_mtp_layer": True}
    assert (router.topk, tuple(router.weight.shape)) == (3, (EXPERTS, 8))
