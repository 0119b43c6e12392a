"""The resolved config: every value of a run, with where it came from. It loads like any other config."""

from collections.abc import Iterator

from hybridrl import __version__
from hybridrl.config.load import LoadedConfig, values
from hybridrl.config.strict_yaml import inline


def as_yaml(loaded: LoadedConfig) -> str:
    """YAML of all values, one a line, with the origin of each as a comment."""
    lines = list(_lines(loaded))
    column = min(60, max(len(line) for line, _ in lines))
    body = [f"{line:<{column}}  # {origin}" if origin else line for line, origin in lines]
    return "\n".join([f"# hybridrl {__version__}, from {loaded.file}", *body]) + "\n"


def _lines(loaded: LoadedConfig) -> Iterator[tuple[str, str]]:
    above: tuple[str, ...] = ()
    for dotted, value in values(loaded.config):
        *sections, name = dotted.split(".")
        shared = next(
            (i for i, (a, b) in enumerate(zip(above, sections)) if a != b), min(len(above), len(sections))
        )
        for depth in range(shared, len(sections)):
            yield f"{'  ' * depth}{sections[depth]}:", ""
        above = tuple(sections)
        value = list(value) if isinstance(value, tuple) else value
        yield f"{'  ' * len(sections)}{name}: {inline(value)}", loaded.origins[dotted]
