"""What the trainer cannot do is refused before it joins the other ranks."""

import json
from pathlib import Path

import pytest
import trainer_scenarios as scenarios
import trainer_values as values
from trainer_ranks import on_ranks

from hybridrl.errors import LayoutError, ModelError
from hybridrl.trainer.setup import make_layout


def write_config(folder: Path, **changes: object) -> Path:
    config = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-6, **values.SIZES, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("shape", "words"), [((3, 1, 1), "tp = 3 .* 4 attention heads"), ((1, 4, 1), "pp = 4 .* 2 layers")]
)
def test_a_model_that_does_not_divide(tmp_path, shape, words) -> None:
    with pytest.raises(LayoutError, match=words):
        make_layout(values.make_setup(0, "", write_config(tmp_path), shape))


def test_a_model_with_a_part_that_megatron_lacks(tmp_path) -> None:
    with pytest.raises(ModelError, match="bias on the attention output"):
        make_layout(values.make_setup(0, "", write_config(tmp_path, attention_bias=True), (1, 1, 1)))


def test_a_machine_on_which_torch_would_take_a_gpu(tmp_path) -> None:
    said = on_ranks(1, scenarios.with_a_gpu, write_config(tmp_path))[0]
    assert said.startswith("ResourceError")
    assert "CUDA_VISIBLE_DEVICES" in said
