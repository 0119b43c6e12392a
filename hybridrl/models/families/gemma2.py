"""Gemma 2. Its windows and soft caps are no matter of weights: who builds the model has to know them."""

from hybridrl.models.families import _dense as dense
from hybridrl.models.families import _gemma as gemma
from hybridrl.models.table import Family

FAMILY = Family(
    architecture="Gemma2ForCausalLM",
    rows=(dense.EMBED, *gemma.LAYERS),
    activation=gemma.ACTIVATION,
    traits=gemma.traits,
)
