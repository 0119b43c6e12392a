"""Policy training with PyTorch FSDP2 on transformers' own modules."""
