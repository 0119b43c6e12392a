"""The machine and its devices. Only this package knows how to run Megatron-core and SGLang without CUDA."""
