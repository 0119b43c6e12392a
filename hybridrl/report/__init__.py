"""`hybridrl report` and `hybridrl compare`: what happened in a run, from the files of its folder alone."""
