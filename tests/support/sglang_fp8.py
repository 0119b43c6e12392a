"""SGLang's own models in block FP8. A program: it changes its process for good.

    python sglang_fp8.py OUT FOLDER=TP[:EP][,...]...

Writes for each rank what the probe says of a true layout and of a false one, which tensors the probe did not
restore, the scales of a cache after random weights, and what the loader makes of the folder's checkpoint,
which is in FP8.
"""

import sys

import torch
from safetensors.torch import load_file
from sglang_loader import answers, on_model
from sglang_probe import UpBeforeGate, not_restored, state, verdict

from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import read
from hybridrl.rollout.sglang.hooks import without_cache_scales
from hybridrl.rollout.sglang.receive import CACHE_SCALES, weights


def processed(model):
    """What SGLang does after a load."""
    for module in model.modules():
        if getattr(module, "quant_method", None) is not None:
            module.quant_method.process_weights_after_loading(module)


def asked(folder, tp, rank, ep=1):
    def ask(model):
        from sglang.srt.model_loader import loader  # after sglang_loader, which says that there is no GPU

        without_cache_scales(loader.initialize_dummy_weights, model)
        if hasattr(model, "post_load_weights"):
            model.post_load_weights()
        processed(model)
        before, sizes = state(model), {"tp": tp, "ep": ep, "fp8": True}
        cache = {float(p) for name, p in model.named_parameters() if name.endswith(CACHE_SCALES)}
        found = [verdict(model, kind(read(folder), **sizes), rank) for kind in (SGLangLayout, UpBeforeGate)]
        restored = not_restored(before, state(model))
        model.load_weights(iter(load_file(f"{folder}/model-fp8.safetensors").items()))
        processed(model)
        return {
            "parameters": {name: p.data.clone() for name, p in weights(model)},
            "true": found[0],
            "false": found[1],
            "not_restored": restored,
            "cache": sorted(cache),
        }

    return on_model(folder, tp, rank, ask, ep, fp8=True)


if __name__ == "__main__":
    out, *orders = sys.argv[1:]
    torch.save(answers(orders, asked), out)
