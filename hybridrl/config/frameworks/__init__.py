"""What other frameworks compute, one file for each: rows of choices that reproduce their numerics."""
