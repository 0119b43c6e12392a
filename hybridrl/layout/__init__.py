"""Who holds what, as data: rectangles of canonical parameters, and where they sit in a rank's tensors."""
