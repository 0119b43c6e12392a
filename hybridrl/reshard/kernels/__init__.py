"""The kernels that executors of descriptor tables run.

native.c       copies, casts and quantises on CPU; setup.py builds it if there is a C compiler
boxes.py       the same in Triton, for a GPU
reference.py   the arithmetic of block-FP8 in torch: the specification
"""
