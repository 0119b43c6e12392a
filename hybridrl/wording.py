"""Numbers in sentences."""


def counted(number: int, noun: str, plural: str = "", form: str = "") -> str:
    """A number and its noun: "1 prompt", "2 prompts".

    Args:
        plural: of the noun, where it is not the noun with an s.
        form: of the number, as in a format string: "," for 1,024.
    """
    return f"{number:{form}} {noun if number == 1 else plural or f'{noun}s'}"
