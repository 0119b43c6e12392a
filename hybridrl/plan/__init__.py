"""`hybridrl plan`: memory, time and weight swap of a run before it starts."""
