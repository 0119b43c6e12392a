"""Layouts, as data: which part of each canonical parameter a rank holds, and where in its tensors."""
