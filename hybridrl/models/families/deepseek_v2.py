"""DeepSeek-V2 and V2-Lite: latent attention, shared experts, a router without bias."""

from hybridrl.models.families import _mla as mla
from hybridrl.models.table import Family

FAMILY = Family(architecture="DeepseekV2ForCausalLM", rows=mla.ROWS, dp_attention=True, traits=mla.traits)
