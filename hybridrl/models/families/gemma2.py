"""Gemma 2. Its windows and soft caps are no matter of weights: who builds the model has to know them."""

from hybridrl.models.families import _dense as dense
from hybridrl.models.families import _gemma as gemma
from hybridrl.models.table import Family

FAMILY = Family(
    architecture="Gemma2ForCausalLM",
    rows=(
        dense.EMBED,
        dense.ATTENTION_NORM,
        dense.QKV,
        dense.QKV_BIAS,
        dense.ATTENTION_OUT,
        dense.ATTENTION_OUT_BIAS,
        gemma.POST_ATTENTION_NORM,
        gemma.FFN_NORM,
        dense.GATE_UP,
        dense.DOWN,
        gemma.POST_FFN_NORM,
        dense.FINAL_NORM,
    ),
    activation=gemma.ACTIVATION,
    traits=gemma.traits,
)
