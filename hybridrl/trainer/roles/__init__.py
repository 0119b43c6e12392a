"""What trainer ranks hold besides the policy: models that are trained beside it, or only asked."""
