"""Ray mechanics without any RL: starting Ray, groups of workers, deadlines, dead workers."""
