"""The workloads of `hybridrl bench`. A module of the name of a benchmark has it as BENCH."""
