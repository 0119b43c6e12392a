"""Model families as data: shapes, canonical parameters, and what each system calls and cuts them."""
