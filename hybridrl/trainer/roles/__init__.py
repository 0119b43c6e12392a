"""Models that trainer ranks hold besides the policy: some are trained with it, others only evaluated."""
