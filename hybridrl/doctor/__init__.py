"""What this machine has for a run, what is missing, and the command that gets it."""
