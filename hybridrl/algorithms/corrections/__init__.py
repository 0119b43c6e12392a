"""Corrections for the gap between engine and trainer probabilities, one file each; they are applied in the
order given."""
