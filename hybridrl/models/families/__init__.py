"""One model table a file. A new family is a new file here that names its architecture, nothing else."""
