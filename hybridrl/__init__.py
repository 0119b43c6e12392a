"""hybridrl: reinforcement learning of language models with Megatron-core and colocated SGLang engines."""

__version__ = "0.1.0"
