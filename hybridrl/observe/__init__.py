"""What the user sees of a run: metrics, times, samples, the live view, and the files that stay."""
