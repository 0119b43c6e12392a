"""`hybridrl plan`: estimates memory, time and weight swap of a run before it starts."""
