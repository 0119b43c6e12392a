"""The certificate of invariance: a batch has one gradient, however it is cut over ranks and microbatches."""
