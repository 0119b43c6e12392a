"""Pictures for a model of transformers that has a vision tower beside its text model.

The tower is gathered together with the embedding, in every pass and on every rank. So its forward pass needs
no collective, and a rank whose microbatch shows no picture leaves it out.
Shape letters: T packed tokens of this rank, P places of this rank that show a picture, F features of the
microbatch, H hidden size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from hybridrl.models.vision import VisionSpec
from hybridrl.trainer.fsdp import attention
from hybridrl.trainer.places import Microbatch
from hybridrl.trainer.tower import encode

ATTENTION = {"text_config": attention.NAME, "vision_config": "sdpa"}
"""What computes attention in each part: packed sequences under a causal mask, and whole pictures."""

_STEM = "model.visual."


def in_tower(name: str) -> str | None:
    """The name in the tower's module of a parameter of the network; None: it belongs to the text model."""
    return name.removeprefix(_STEM) if name.startswith(_STEM) else None


def inputs(body: Any, vision: VisionSpec, microbatch: Microbatch) -> dict[str, Any]:
    """What the text model is called with: embeddings with the features in their places, the places along
    three axes, and what is added after the first layers (DeepStack)."""
    packing = microbatch.packing
    place_3T = packing.position_T.expand(3, -1) if packing.place_3T is None else packing.place_3T
    found: dict[str, Any] = {"position_ids": place_3T.unsqueeze(1)}
    hidden_1TH = body.get_input_embeddings()(microbatch.token_T.unsqueeze(0))
    if packing.pictures is None or packing.feature_T is None:
        return found | {"inputs_embeds": _unseen(hidden_1TH, body.visual)}
    features_FH, deep = encode(body.visual, vision, packing.pictures, hidden_1TH.device)
    shows_T = packing.feature_T >= 0
    place_P = shows_T.nonzero().flatten()
    row_P = packing.feature_T[place_P]
    own_1PH = features_FH.index_select(0, row_P).unsqueeze(0)
    found["inputs_embeds"] = hidden_1TH.index_copy(1, place_P, own_1PH.to(hidden_1TH.dtype))
    if deep:
        found["visual_pos_masks"] = shows_T.unsqueeze(0)
        found["deepstack_visual_embeds"] = [one_FH.index_select(0, row_P) for one_FH in deep]
    return found


def _unseen(hidden_1TH: Tensor, tower: nn.Module) -> Tensor:
    """The same hidden states. Trained parameters of the tower get gradients of 0: the sum over ranks is of as
    many gradients on each, and in one dtype."""
    trained = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    return _NoGradient.apply(hidden_1TH, *trained) if trained else hidden_1TH


class _NoGradient(Function):
    @staticmethod
    def forward(ctx: Any, hidden_1TH: Tensor, *weights: Tensor) -> Tensor:
        ctx.like = [(weight.shape, weight.dtype, weight.device) for weight in weights]
        return hidden_1TH.view_as(hidden_1TH)

    @staticmethod
    def backward(ctx: Any, grad_1TH: Tensor) -> tuple[Tensor, ...]:
        zeros = (torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like)
        return grad_1TH, *zeros
