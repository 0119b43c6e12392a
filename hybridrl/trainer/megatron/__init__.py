"""Policy training on Megatron-core.

Importing this package prepares the host first: without CUDA, Megatron has to be imported in a special way.
"""

from hybridrl.hosts import cpu

cpu.install()
