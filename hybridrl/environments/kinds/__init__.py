"""Environments: a file's name is its name in `environment:`.

An environment is a class with reset(row, seed) and step(turn), see hybridrl.environments.base; the arguments
of its __init__ are its options in the config.
"""
