"""Turns a config into processes on machines."""
