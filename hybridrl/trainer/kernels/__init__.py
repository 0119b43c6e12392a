"""What the log-probability of a huge vocabulary does with a piece of its logits, in one pass over them.

reference.py   in torch: the specification, and what runs on CPU
fused.py       in Triton: what runs on a GPU
"""
