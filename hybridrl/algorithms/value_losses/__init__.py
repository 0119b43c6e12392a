"""Losses of a value function, one file each."""
