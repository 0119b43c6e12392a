"""Ray actors, and the roles over them that the controller uses. They convert, call and return; the work
itself is in other packages."""
