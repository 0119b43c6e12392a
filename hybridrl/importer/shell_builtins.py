"""What builtins of bash do to the variables and arguments of a script."""

import re

from hybridrl.importer.shell_words import NAME, STARTED_WITH, Hidden, Value, Variables, Word


def declared(word: Word, *, is_open: bool) -> Value:
    """The value that `export "name=..."` gives, with the word expanded.

    Args:
        is_open: the words with which the script is started are part of it.
    """
    left, _, right = word.text.partition("=")
    if word.unknown or is_open:
        return Hidden(word.unknown or STARTED_WITH)
    if re.fullmatch(NAME, left):
        return right
    return Hidden(f"${re.split(r'[+[]', left)[0]}, set by {left}= on line {word.line}")


def unset(known: Variables, words: list[Word]) -> None:
    for word in words:
        if "-f" not in [one.text for one in words]:
            known.values[word.text.partition("[")[0]] = None
        known.functions.pop(word.text, None)


def names_set(command: str, words: list[Word]) -> list[str]:
    """The variables that read, mapfile, getopts, let or printf set."""
    texts = [word.text for word in words]
    if command == "printf":
        return texts[1:2] if texts[:1] == ["-v"] else []
    if command == "let":
        return [name for text in texts for name in re.findall(NAME, text)]
    named = [text for text in texts if re.fullmatch(NAME, text)]
    return [*named, "REPLY", "MAPFILE", "OPTARG", "OPTIND"]


def set_arguments(known: Variables, words: list[Word]) -> None:
    """Follows `set`; a word that is unknown stands for those with which the script is started."""
    texts = [word.text for word in words]
    if "--" in texts:
        given = tuple(words[texts.index("--") + 1 :])
    elif texts and texts[0][:1] not in {"-", "+"}:
        given = tuple(words)
    else:
        return
    is_same = known.arguments is None and given == (Word(0, "$@", STARTED_WITH),)
    known.arguments = None if is_same else given


def shift(known: Variables, words: list[Word]) -> None:
    """Follows `shift`, which leaves the arguments as they are if there are fewer than it takes away."""
    if not isinstance(known.arguments, tuple):
        return
    count = words[0].text if words else "1"
    taken = known.arguments[: int(count)] if count.isdigit() else ()
    if not count.isdigit() or any(word.unknown == STARTED_WITH for word in taken):
        known.arguments = Hidden(f"shift {count}")
    elif len(taken) == int(count):
        known.arguments = known.arguments[int(count) :]


def change_folder(known: Variables, words: list[Word], line: int) -> None:
    where = words[-1] if words else Word(line, "", "cd")
    is_plain = not where.unknown and where.text.startswith("/") and ".." not in where.text
    known.values["PWD"] = where.text.rstrip("/") if is_plain else Hidden(f"$PWD after cd on line {line}")
    known.values["OLDPWD"] = Hidden("$OLDPWD")
