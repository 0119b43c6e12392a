"""`hybridrl bench`: fixed workloads, measured and compared with what is stored; see docs/benchmarks.md."""
