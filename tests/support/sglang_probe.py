"""What the loader probe says of SGLang's models. A program: it changes its process for good.

    python sglang_probe.py OUT FOLDER=TP[:EP[:DP]][,...]...

Writes for each rank what a true layout gives, what a false one, and which tensors were not restored.
"""

import json
import sys
from dataclasses import dataclass

import torch
from sglang_loader import answers, on_model

from hybridrl.errors import LayoutError
from hybridrl.layout.base import Layout
from hybridrl.layout.runs import Run
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import read
from hybridrl.rollout.sglang.probe import probe_loader


@dataclass(frozen=True)
class UpBeforeGate(SGLangLayout):
    """A layout that is wrong in one parameter class, with the right names and shapes."""

    def _holdings(self):
        for held in super()._holdings():
            if held.param != "layers.*.gate_up":
                yield held
                continue
            part, first = self.spec.ffn_size // self.tp, held.rows[0].at
            gate, up = Run(first, part, part), Run(self.spec.ffn_size + first, part, 0)
            yield held._replace(rows=(gate, up))


def verdict(model, layout: Layout, rank: int) -> str:
    try:
        probe_loader(model, layout, rank)
    except LayoutError as difference:
        return difference.what
    return ""


def state(model):
    """Identity, address and values of every tensor, also of those that are derived of parameters."""
    return {
        f"{path}.{key}": (id(value), value.data_ptr(), value.detach().clone())
        for path, module in model.named_modules()
        for place in (module._parameters, module._buffers, module.__dict__)
        for key, value in place.items()
        if isinstance(value, torch.Tensor)
    }


def not_restored(before, after):
    gone = before.keys() ^ after.keys()
    changed = {
        name
        for name in before.keys() & after.keys()
        if before[name][:2] != after[name][:2] or not torch.equal(before[name][2], after[name][2])
    }
    return sorted(gone | changed)


def asked(folder, tp, rank, ep=1, dp=1):
    def ask(model):
        torch.manual_seed(rank)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape))
        if hasattr(model, "post_load_weights"):
            model.post_load_weights()
        before = state(model)
        sizes = {"tp": tp, "ep": ep, "dp_attention": dp, "dp_lm_head": dp > 1}
        found = [verdict(model, kind(read(folder), **sizes), rank) for kind in (SGLangLayout, UpBeforeGate)]
        derived = sorted(name for name in before if name.endswith(("w_kc", "w_vc")))
        return {
            "true": found[0],
            "false": found[1],
            "derived": derived,
            "not_restored": not_restored(before, state(model)),
        }

    return on_model(folder, tp, rank, ask, ep, dp)


if __name__ == "__main__":
    out, *orders = sys.argv[1:]
    found = {f"{folder} {case}": ranks for (folder, case), ranks in answers(orders, asked).items()}
    with open(out, "w") as file:
        json.dump(found, file)
