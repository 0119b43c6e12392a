"""What a run will move and hold, from its config alone: no GPU, no torch."""
