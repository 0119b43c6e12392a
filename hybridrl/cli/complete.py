"""What a shell offers when TAB is pressed: config files, and the keys of an override.

Nothing is imported before a completion is asked for: `--help` imports this file.
"""

from pathlib import Path

import typer


def configs(incomplete: str) -> list[str]:
    """YAML files and folders whose path begins so."""
    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    try:
        found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []
    names = [f"{path}/" if path.is_dir() else str(path) for path in found if _is_offered(path)]
    return [name for name in names if name.startswith(incomplete)]


def overrides(context: typer.Context, incomplete: str) -> list[str]:
    """Keys of the schema, as key=; behind the sign, the words that the key takes."""
    from hybridrl.config import keys
    from hybridrl.config.kinds import KINDS

    command = context.params.get("command") or context.info_name
    root = next((root for kind, root in KINDS.items() if kind == command), KINDS["launch"])
    name, sign, _ = incomplete.partition("=")
    if not sign:
        values = [key.name for key in keys.all_keys(root) if key.section is None]
        return [f"{key}=" for key in values if key.startswith(incomplete)]
    key = keys.find(name, root)
    words = _words(keys.expected(key)) if key else []
    return [choice for word in words if (choice := f"{name}={word}").startswith(incomplete)]


def section_keys(incomplete: str) -> list[str]:
    """Sections and keys of every kind of config."""
    from hybridrl.config import keys

    names = dict.fromkeys(key.name for root in keys.ROOTS for key in keys.all_keys(root))
    return [name for name in names if name.startswith(incomplete)]


def _is_offered(path: Path) -> bool:
    return path.is_dir() or path.suffix in {".yaml", ".yml"}


def _words(expected: str) -> list[str]:
    """The words that a key takes, from what it takes in words; [] where it takes any text or number."""
    if expected.startswith("true or false"):
        return ["true", "false"]
    if not expected.startswith("one of "):
        return []
    return expected.removeprefix("one of ").replace(" or null", ", null").split(", ")
