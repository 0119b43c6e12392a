"""A loader that puts every element where the layout says passes the probe; any other is refused by range."""

import re
import weakref

import pytest
import torch
from fp8_values import DENSE, empty_engine, fp8_layout
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from model_values import hf_tensors, specs, tiny
from shard_oracle import sglang_shard

from hybridrl.errors import LayoutError
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.layout.sharding import fits
from hybridrl.rollout.probe import LoaderProbe

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class Engine:
    """Tensors and a loader, made by the oracle; `damage` is done to the tensors after each load."""

    def __init__(self, spec, tp, rank, dtype=torch.float32, damage=lambda tensors: None):
        self._spec, self._place, self._damage = spec, {"tp": tp, "rank": rank}, damage
        self._hf = hf_tensors(spec)
        self.fed = []
        self.tensors = {
            name: tensor.to(dtype, copy=True)
            for name, tensor in sglang_shard(spec, self._hf, **self._place).items()
        }

    def load(self, weights):
        given = dict(weights)
        self.fed.append(given)
        # What was not fed keeps what it has, as with a loader that goes by name.
        loaded = sglang_shard(
            self._spec, {n: torch.zeros_like(t) for n, t in self._hf.items()} | given, **self._place
        )
        touched = sglang_shard(
            self._spec, {n: torch.full_like(t, n in given) for n, t in self._hf.items()}, **self._place
        )
        for name, tensor in self.tensors.items():
            tensor.copy_(torch.where(touched[name] > 0, loaded[name].to(tensor.dtype), tensor))
        self._damage(self.tensors)

    def probe(self, layout, **options):
        LoaderProbe(layout, self._place["rank"], **options).run(self.load, lambda: self.tensors)


@st.composite
def engines(draw):
    spec = draw(specs())
    tp = draw(st.sampled_from([size for size in range(1, spec.num_heads + 1) if fits(spec, size)]))
    return spec, tp, draw(st.integers(0, tp - 1)), draw(st.sampled_from(DTYPES))


@settings(max_examples=25, deadline=None)
@given(engines(), st.booleans())
def test_a_loader_that_does_what_was_declared_passes(engine, every_layer):
    spec, tp, rank, dtype = engine
    Engine(spec, tp, rank, dtype).probe(SGLangLayout(spec, tp=tp), every_layer=every_layer)


@settings(max_examples=25, deadline=None)
@given(engines(), st.data())
def test_a_planted_permutation_is_found_and_named(engine, data):
    spec, tp, rank, dtype = engine
    layout = SGLangLayout(spec, tp=tp)
    name = data.draw(st.sampled_from(LoaderProbe(layout, rank).targets))
    shard = layout.shards(rank)[name]
    rows = [run.local + i for run in shard.rows for i in range(run.length)]
    assume(len(rows) > 1)
    a, b = sorted(data.draw(st.lists(st.sampled_from(rows), min_size=2, max_size=2, unique=True)))

    def damage(tensors):
        tensors[name][[a, b]] = tensors[name][[b, a]]

    with pytest.raises(LayoutError, match=f"^{re.escape(name)} should hold rows .* at rows {a}-"):
        Engine(spec, tp, rank, dtype, damage).probe(layout)


@settings(max_examples=10, deadline=None)
@given(engines(), st.data())
def test_a_loader_that_leaves_an_element_out_is_found(engine, data):
    spec, tp, rank, dtype = engine
    layout = SGLangLayout(spec, tp=tp)
    name = data.draw(st.sampled_from(LoaderProbe(layout, rank).targets))
    shard = layout.shards(rank)[name]
    assume(shard.rows)
    last = shard.rows[-1].local + shard.rows[-1].length - 1

    def damage(tensors):
        tensors[name][last] = -1

    with pytest.raises(LayoutError, match=f"at rows {last}-{last}.* puts nothing that it was given there"):
        Engine(spec, tp, rank, dtype, damage).probe(layout)


def test_the_message_says_what_was_declared_and_what_is_there():
    spec = tiny("qwen3", num_heads=4, num_kv_heads=2, head_dim=4, hidden_size=6)
    name = "model.layers.0.self_attn.qkv_proj.weight"

    def swap_the_first_two_heads(tensors):
        tensors[name][:8] = tensors[name][:8].roll(4, 0)

    with pytest.raises(LayoutError) as caught:
        Engine(spec, 1, 0, damage=swap_the_first_two_heads).probe(SGLangLayout(spec))
    q = "model.layers.0.self_attn.q_proj.weight"
    assert caught.value.what == (
        f"{name} should hold rows 0-3, columns 0-5 of {q} at rows 0-3, columns 0-5; "
        f"the engine's loader puts rows 4-7, columns 0-5 of {q} there"
    )
    assert "engine_api" in caught.value.fix


def test_columns_that_changed_places_are_named():
    spec = tiny("llama", ffn_size=12)
    name = "model.layers.3.mlp.down_proj.weight"

    def rotate(tensors):
        tensors[name][:, 2:8] = tensors[name][:, 2:8].roll(3, 1)

    with pytest.raises(
        LayoutError, match=r"at rows 0-5, columns 2-4; .* puts rows 0-5, columns 5-7 of .*down"
    ):
        Engine(spec, 1, 0, damage=rotate).probe(SGLangLayout(spec))


def test_another_layout_than_that_of_the_engine_is_refused():
    spec = tiny("qwen2", num_heads=4, num_kv_heads=4)
    with pytest.raises(LayoutError, match=r"is \(.*\), its layout says"):
        Engine(spec, 2, 0).probe(SGLangLayout(spec))
    with pytest.raises(LayoutError, match="should hold rows"):
        LoaderProbe(SGLangLayout(spec, tp=2), 1).run(
            (other := Engine(spec, 2, 0)).load, lambda: other.tensors
        )


def test_a_tensor_that_only_one_side_has_is_refused():
    spec = tiny("qwen3")
    engine = Engine(spec, 1, 0)
    del engine.tensors["model.norm.weight"]
    with pytest.raises(LayoutError, match="only one of the engine and its layout has model.norm.weight"):
        engine.probe(SGLangLayout(spec))


def test_half_precision_takes_more_passes_than_single():
    spec = tiny("llama", vocab_size=70_000, num_layers=1)
    counts = {}
    for dtype in DTYPES:
        engine = Engine(spec, 1, 0, dtype)
        engine.probe(SGLangLayout(spec))
        counts[dtype] = len(engine.fed)
    assert counts == {torch.float32: 3, torch.float16: 4, torch.bfloat16: 5}


def test_a_dtype_without_exact_integers_is_refused():
    spec = tiny("llama")
    with pytest.raises(LayoutError, match="float64"):
        Engine(spec, 1, 0, torch.float64).probe(SGLangLayout(spec))


def test_a_parameter_of_single_precision_may_be_among_others():
    spec = tiny("qwen3", hidden_size=300)
    engine = Engine(spec, 1, 0, torch.bfloat16)
    engine.tensors["model.norm.weight"] = engine.tensors["model.norm.weight"].float()
    engine.probe(SGLangLayout(spec))
    assert {tensor.dtype for tensor in engine.fed[0].values()} == {torch.bfloat16}


def test_only_the_ends_of_the_model_are_fed():
    spec = tiny("qwen3", num_layers=6)
    engine = Engine(spec, 1, 0)
    engine.probe(SGLangLayout(spec))
    layers = {name.split(".")[2] for name in engine.fed[0] if ".layers." in name}
    assert layers == {"0", "5"}
    assert {"model.norm.weight", "lm_head.weight"} <= engine.fed[0].keys()


def test_tags_are_made_one_at_a_time():
    spec = tiny("qwen3")
    made = []

    def load(weights):
        for _, tensor in weights:
            assert not any(alive() is not None for alive in made)
            made.append(weakref.ref(tensor))
            del tensor

    engine = Engine(spec, 1, 0)
    with pytest.raises(LayoutError, match="nothing that it was given"):
        LoaderProbe(SGLangLayout(spec), 0).run(load, lambda: engine.tensors)
    assert made


FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def parts_of(name):
    """The tensors of a checkpoint that a tensor of an engine consists of."""
    stem, _, end = name.rpartition(".")
    for fused, parts in FUSED.items():
        if stem.endswith(fused):
            return [f"{stem.removesuffix(fused)}{part}.{end}" for part in parts]
    return [name]


def probe_fp8(damage=lambda tensors: None, *, reads_scales=True):
    """Probe an engine of one rank in block FP8."""
    layout = fp8_layout(DENSE)
    tensors = empty_engine(layout, 0)

    def load(weights):
        given = {name: tensor.float() for name, tensor in weights}
        for name, tensor in tensors.items():
            parts = parts_of(name)
            if set(parts) <= given.keys() and (reads_scales or not name.endswith("_scale_inv")):
                found = torch.cat([given[part] for part in parts])
                tensor[: len(found)].copy_(found)  # the rest of a vocabulary is padding
        damage(tensors)

    LoaderProbe(layout, 0).run(load, lambda: tensors)


def test_weights_and_scales_in_fp8_are_probed():
    probe_fp8()
    probe_fp8(reads_scales=False)  # as SGLang's loader of Llama


@pytest.mark.parametrize("end", ["weight", "weight_scale_inv"])
def test_a_row_elsewhere_is_found_in_fp8_values_and_in_scales(end):
    name = f"model.layers.0.mlp.gate_up_proj.{end}"

    def damage(tensors):
        tensors[name].copy_(tensors[name].float().roll(1, 0))

    with pytest.raises(LayoutError, match=f"{re.escape(name)} should hold"):
        probe_fp8(damage)
