"""hybridrl: reinforcement learning of language models with Megatron-core trainers and colocated SGLang engines."""

__version__ = "0.1.0"
