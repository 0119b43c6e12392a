"""What is known of a script's variables after branches of which only a run could tell the one taken."""

from hybridrl.importer.shell_words import Hidden, Value, Variables


def changed_names(before: Variables, after: Variables) -> set[str]:
    """The variables whose values differ."""
    names = before.values.keys() | after.values.keys()
    return {name for name in names if said(before, name) != said(after, name)}


def said(known: Variables, name: str) -> tuple[bool, Value]:
    """Whether anything is said of a variable, and its value."""
    return name in known.values, known.values.get(name)


def merged(ends: list[Variables], what: str) -> Variables:
    """What is known after branches that all may have been taken; one that ended the script does not count."""
    alive = [end for end in ends if not end.ended]
    if not alive:
        return ends[0]
    made = alive[0].copy()
    for name in sorted({name for end in alive for name in end.values}):
        values = list(dict.fromkeys(said(end, name) for end in alive))
        if len(values) > 1:
            shown = " or ".join(_shown(one) for _, one in values)
            made.values[name] = Hidden(f"${name}: {shown}, by the {what}")
    for name in {name for end in alive for name in end.functions}:
        bodies = [end.functions.get(name) for end in alive]
        made.functions[name] = bodies[0] if all(one is bodies[0] for one in bodies) else None
    for end in alive:
        made.declared |= end.declared
    if any(end.arguments != made.arguments for end in alive):
        made.arguments = Hidden(f"the arguments, by the {what}")
    return made


def _shown(one: Value) -> str:
    if isinstance(one, Hidden):
        return one.reason
    if isinstance(one, tuple):
        return f"({' '.join(word.text for word in one)})"
    return "not set" if one is None else one or '""'
