"""Ray actors and the roles that the controller sees of them: convert, call, return. The work is in other
rooms."""
