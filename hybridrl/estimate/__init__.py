"""Estimates of a run's memory, time and weight swap, from its config alone. They need no GPU and no torch."""
