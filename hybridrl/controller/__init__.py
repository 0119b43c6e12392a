"""The training loop and what it needs from the world: roles only, no Ray handle and no Megatron."""
