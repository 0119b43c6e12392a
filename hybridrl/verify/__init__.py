"""The certificate of invariance: a batch has the same gradient on every parallel layout and with every
partition into microbatches."""
