"""hybridrl from Python: a run whose verbs are called from a script or a notebook."""
