"""Ray mechanics: start, groups of workers, deadlines, dead workers. Knows no RL."""
