"""`hybridrl export`: the Hugging Face model of a checkpoint."""
