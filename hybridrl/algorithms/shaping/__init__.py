"""Shaping of outcome rewards before the advantage, one file each; they are applied in the order given."""
