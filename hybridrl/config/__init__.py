"""The config of a run: frozen sections, strict YAML, checks between sections. Imports no torch."""
