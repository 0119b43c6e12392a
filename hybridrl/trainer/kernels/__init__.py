"""Kernels of linear_logprob.py: each makes one pass over a chunk of the logits of a large vocabulary.

reference.py   the specification in torch, which runs on the CPU
fused.py       the Triton kernels, which run on a GPU
"""
