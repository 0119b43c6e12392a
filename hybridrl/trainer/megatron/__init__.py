"""Policy training on Megatron-core.

Importing this package prepares the process first: without CUDA, Megatron can only be imported after
hosts/cpu.py has replaced some functions of torch.
"""

from hybridrl.hosts import cpu

cpu.install()
