"""Other frameworks on the work of `hybridrl bench e2e`, each in an environment of its own."""
