"""Property tests draw the same examples on every machine, take the time they need, and leave no files.

Commands print as into a pipe unless a test sets a width.
"""

import os

from hypothesis import settings

settings.register_profile("reproducible", deadline=None, derandomize=True, database=None)
settings.load_profile("reproducible")

os.environ.pop("COLUMNS", None)  # workers of pytest-xdist have 80
os.unsetenv("COLUMNS")  # readline, which pytest imports, sets it where os.environ does not see it
