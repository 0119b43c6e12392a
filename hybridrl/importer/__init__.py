"""Launch scripts of other frameworks, read and translated into a config."""
