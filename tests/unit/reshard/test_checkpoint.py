"""Model folders into shards and back, bit for bit, with ranks as threads."""

import json
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_values import hf_tensors, specs, tiny, tp_sizes
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from shard_oracle import megatron_shard, sglang_shard

from hybridrl.errors import ModelError, ResourceError, RunFolderError
from hybridrl.layout.hf import HFLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import read
from hybridrl.reshard import checkpoint, hf_files
from hybridrl.reshard.checkpoint import export_hf, load_hf


def save(folder, tensors, num_files=1):
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["Qwen3ForCausalLM"], "dtype": "float32"})
    )
    (folder / "tokenizer.json").write_text("{}")
    names = list(tensors)
    files = {f"part-{i}.safetensors": names[i::num_files] for i in range(num_files)}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    if num_files > 1:
        weight_map = {name: file for file, part in files.items() for name in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def read_all(folder):
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def fresh(layout, dtype=torch.float32):
    """Tensors of every rank, full of rubbish."""
    return [
        {name: torch.full(shard.shape, 7.0, dtype=dtype) for name, shard in layout.shards(rank).items()}
        for rank in range(layout.world_size)
    ]


def load_all(folder, layout, dtype=torch.float32):
    ranks = fresh(layout, dtype)
    for rank, tensors in enumerate(ranks):
        load_hf(folder, layout, rank, tensors)
    return ranks


def export_all(folder, layout, ranks, source, **options):
    """One thread a rank; the first error of any is raised."""
    barrier, errors = threading.Barrier(layout.world_size), []

    def run(rank):
        try:
            export_hf(
                folder, layout, rank, ranks[rank], source_folder=source, barrier=barrier.wait, **options
            )
        except Exception as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(layout.world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@st.composite
def layouts(draw):
    spec = draw(specs())
    pp = draw(st.sampled_from([n for n in (1, 2, 3) if spec.num_layers % n == 0]))
    tp = draw(st.sampled_from(tp_sizes(spec)))
    return MegatronLayout(spec, tp=tp, pp=pp, dp=draw(st.integers(1, 2)))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=layouts(), num_files=st.integers(1, 3))
def test_a_checkpoint_becomes_shards_and_comes_back_bit_for_bit(tmp_path_factory, layout, num_files):
    folder = tmp_path_factory.mktemp("model")
    hf = hf_tensors(layout.spec)
    source = save(folder / "source", hf, num_files)
    ranks = load_all(source, layout)
    sizes = {"tp": layout.tp, "pp": layout.pp}
    for rank, tensors in enumerate(ranks):
        place = {"rank_tp": rank % layout.tp, "rank_pp": rank // (layout.tp * layout.dp)}
        expected = megatron_shard(layout.spec, hf, **sizes, **place)
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    export_all(folder / "export", layout, ranks, source, max_shard_bytes=1000)
    back = read_all(folder / "export")
    assert back.keys() == hf.keys()
    assert all(torch.equal(back[name], hf[name]) for name in hf)


def test_an_engine_can_be_loaded_the_same_way(tmp_path):
    spec = tiny()
    hf = hf_tensors(spec)
    ranks = load_all(save(tmp_path / "source", hf), SGLangLayout(spec, tp=2))
    expected = sglang_shard(spec, hf, tp=2, rank=1)
    assert all(torch.equal(ranks[1][name], expected[name]) for name in expected)


def test_dtypes_are_cast_on_the_way_in_and_out(tmp_path):
    layout = MegatronLayout(tiny(dtype="bfloat16"), tp=2)
    hf = hf_tensors(layout.spec, dtype=torch.bfloat16)
    source = save(tmp_path / "source", hf)
    ranks = load_all(source, layout)
    assert torch.equal(ranks[0]["decoder.final_layernorm.weight"], hf["model.norm.weight"].float())
    export_all(tmp_path / "same", layout, ranks, source)
    export_all(tmp_path / "fp32", layout, ranks, source, dtype=torch.float32)
    assert all(torch.equal(t, hf[name]) for name, t in read_all(tmp_path / "same").items())
    assert all(torch.equal(t, hf[name].float()) for name, t in read_all(tmp_path / "fp32").items())
    assert json.loads((tmp_path / "fp32" / "config.json").read_text())["dtype"] == "float32"


def test_files_are_split_at_the_limit_and_indexed(tmp_path):
    layout = MegatronLayout(tiny())
    source = save(tmp_path / "source", hf_tensors(layout.spec))
    ranks = load_all(source, layout)
    export_all(tmp_path / "one", layout, ranks, source)
    export_all(tmp_path / "many", layout, ranks, source, max_shard_bytes=600)
    assert [p.name for p in (tmp_path / "one").glob("*.safetensors*")] == ["model.safetensors"]
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert [f.name for f in files] == sorted(set(index["weight_map"].values())) and len(files) > 2
    for file in files:
        tensors = load_file(file)
        assert sum(t.nbytes for t in tensors.values()) <= 600 or len(tensors) == 1
        assert all(index["weight_map"][name] == file.name for name in tensors)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in read_all(tmp_path / "one").values())


def test_the_header_is_what_safetensors_writes(tmp_path):
    layout = MegatronLayout(tiny())
    source = save(tmp_path / "source", hf_tensors(layout.spec))
    export_all(tmp_path / "ours", layout, load_all(source, layout), source)
    ours = tmp_path / "ours" / "model.safetensors"
    with safe_open(ours, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    raw = ours.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0 and json.loads(raw[8 : 8 + length])


def test_the_folder_has_what_belongs_to_a_model(tmp_path):
    layout = MegatronLayout(tiny())
    source = save(tmp_path / "source", hf_tensors(layout.spec), num_files=2)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "README.md").write_text("not ours")
    export_all(tmp_path / "export", layout, load_all(source, layout), source)
    names = sorted(path.name for path in (tmp_path / "export").iterdir())
    assert names == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export", "source"]


def test_an_existing_folder_is_never_written(tmp_path):
    layout = MegatronLayout(tiny(), dp=2)
    source = save(tmp_path / "source", hf_tensors(layout.spec))
    (tmp_path / "export").mkdir()
    with pytest.raises(RunFolderError, match="exists already"):
        export_all(tmp_path / "export", layout, load_all(source, layout), source)
    assert not any((tmp_path / "export").iterdir())


def test_an_export_that_fails_leaves_no_folder_and_can_be_repeated(tmp_path, monkeypatch):
    layout = MegatronLayout(tiny(), tp=2)
    hf = hf_tensors(layout.spec)
    source = save(tmp_path / "source", hf)
    ranks = load_all(source, layout)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "copy", _fail)
        with pytest.raises(OSError, match="disk full"):
            export_all(tmp_path / "export", layout, ranks, source)
    assert not (tmp_path / "export").exists()
    export_all(tmp_path / "export", layout, ranks, source)
    assert all(torch.equal(t, hf[name]) for name, t in read_all(tmp_path / "export").items())


def _fail(*_):
    raise OSError("disk full")


def test_a_disk_without_room_is_found_out_before_anything_is_written(tmp_path):
    huge = hf_files.FilePlan("model.safetensors", {"weight": (1 << 60,)}, {"weight": torch.float16})
    with pytest.raises(ResourceError, match="no room for"):
        huge.create(tmp_path)


UNKNOWN = "model.layers.1.mlp.down_proj.bias"


def test_a_part_of_a_layer_that_the_table_does_not_name_is_refused(tmp_path):
    layout = HFLayout(tiny())
    folder = save(tmp_path / "model", hf_tensors(layout.spec) | {UNKNOWN: torch.ones(6)})
    (tensors,) = fresh(layout)
    with pytest.raises(ModelError, match=rf"has {UNKNOWN} \(1 tensors in all\), which the model"):
        load_hf(folder, layout, 0, tensors)
    assert all((tensor == 7).all() for tensor in tensors.values())


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.4.mlp.down_proj.bias",  # of a layer that predicts further tokens
        "model.layers.1.self_attn.rotary_emb.inv_freq",
        "vision_tower.layers.0.weight",
        "score.weight",
    ],
)
def test_what_no_layer_computes_with_may_be_there(tmp_path, name):
    layout = HFLayout(tiny())
    tensors = hf_tensors(layout.spec)
    folder = save(tmp_path / "model", tensors | {name: torch.ones(6)})
    assert load_all(folder, layout)[0].keys() == tensors.keys()


def test_what_the_checkpoint_lacks_is_named_and_nothing_is_written(tmp_path):
    layout = MegatronLayout(tiny())
    hf = hf_tensors(layout.spec)
    del hf["model.layers.1.mlp.up_proj.weight"]
    ranks = fresh(layout)
    with pytest.raises(ModelError, match=r"lacks model.layers.1.mlp.up_proj.weight \(1 of"):
        load_hf(save(tmp_path / "source", hf), layout, 0, ranks[0])
    assert all((tensor == 7.0).all() for tensor in ranks[0].values())


def test_a_tensor_of_another_shape_is_named(tmp_path):
    layout = MegatronLayout(tiny())
    hf = hf_tensors(layout.spec) | {"model.norm.weight": torch.zeros(5)}
    with pytest.raises(
        ModelError, match=r"model.norm.weight is \(5,\) in the checkpoint, \(6,\) by its config"
    ):
        load_all(save(tmp_path / "source", hf), layout)


def test_folders_without_readable_weights_are_refused(tmp_path):
    layout = MegatronLayout(tiny())
    with pytest.raises(ModelError, match="no safetensors"):
        load_all(tmp_path, layout)
    hf = hf_tensors(layout.spec)
    cut = save(tmp_path / "cut", hf)
    raw = (cut / "part-0.safetensors").read_bytes()
    (cut / "part-0.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ModelError, match="cannot read part-0.safetensors"):
        load_all(cut, layout)
    torn = save(tmp_path / "torn", hf, num_files=2)
    (torn / "model.safetensors.index.json").write_text('{"weight_map": {')
    with pytest.raises(ModelError, match="cannot read model.safetensors.index.json"):
        load_all(torn, layout)
    lost = save(tmp_path / "lost", hf, num_files=2)
    (lost / "part-1.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot read part-1.safetensors"):
        load_all(lost, layout)


def test_tensors_of_the_caller_must_be_as_the_layout_says(tmp_path):
    layout = MegatronLayout(tiny())
    source = save(tmp_path / "source", hf_tensors(layout.spec))
    tensors = fresh(layout)[0]
    name = "decoder.final_layernorm.weight"
    with pytest.raises(ValueError, match=f"no tensor {name}"):
        load_hf(source, layout, 0, {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(ValueError, match=r"its layout says \(6,\)"):
        load_hf(source, layout, 0, tensors | {name: torch.zeros(7)})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("config_class", ["LlamaConfig", "Qwen2Config", "Qwen3Config"])
def test_transformers_loads_what_was_exported(tmp_path, config_class, tied):
    import transformers

    config = getattr(transformers, config_class)(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=24,
        vocab_size=53,
        tie_word_embeddings=tied,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path / "source")
    layout = MegatronLayout(read(tmp_path / "source"), tp=2, pp=2)
    ranks = load_all(tmp_path / "source", layout)
    export_all(tmp_path / "export", layout, ranks, tmp_path / "source")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert read(tmp_path / "export") == layout.spec
    for (name, ours), (_, theirs) in zip(back.state_dict().items(), model.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name
    assert HFLayout(layout.spec).shards(0).keys() == read_all(tmp_path / "export").keys()
