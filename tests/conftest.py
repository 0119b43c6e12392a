"""Property tests draw the same examples on every machine, take the time they need, and leave no files."""

from hypothesis import settings

settings.register_profile("reproducible", deadline=None, derandomize=True, database=None)
settings.load_profile("reproducible")
