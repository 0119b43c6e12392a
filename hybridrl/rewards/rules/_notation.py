"""Rewrites of mathematics as people and models type it into what the math-verify library reads.

The library reads LaTeX and plain ASCII. It drops Unicode signs and words of other alphabets silently, so that
"√2" would be 2, "5 小时" a product of letters, "2 2/3" the product 4/3, and "1 000" the product 0.
"""

import re
import unicodedata

_FRACTIONS = {
    char: tuple(unicodedata.normalize("NFKC", char).split("\u2044")) for char in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"
}
_GREEK = {
    unicodedata.lookup(f"GREEK SMALL LETTER {name}"): f"\\{spelled} "
    for name, spelled in [
        *(
            (name.upper(), name)
            for name in "alpha beta gamma delta epsilon zeta eta theta iota kappa mu".split()
        ),
        *((name.upper(), name) for name in "nu xi pi rho sigma tau upsilon phi chi psi omega".split()),
        ("LAMDA", "lambda"),
    ]
} | dict(
    zip(
        "ΓΔΘΛΞΠΣΦΨΩ",
        "\\Gamma |\\Delta |\\Theta |\\Lambda |\\Xi |\\Pi |\\Sigma |\\Phi |\\Psi |\\Omega ".split("|"),
        strict=True,
    )
)
_SIGNS = {
    "−": "-", "–": "-", "÷": "/", "⁄": "/", "∕": "/", "≤": "\\le ", "⩽": "\\le ", "≥": "\\ge ", "⩾": "\\ge ",
    "≠": "\\ne ", "≈": "\\approx ", "∞": "\\infty ", "±": "\\pm ", "∓": "\\mp ", "∈": "\\in ", "∪": "\\cup ",
    "∩": "\\cap ", "∅": "\\emptyset ", "ℝ": "\\mathbb{R}", "ℕ": "\\mathbb{N}", "ℤ": "\\mathbb{Z}",
    "ℚ": "\\mathbb{Q}", "ℂ": "\\mathbb{C}", "。": ". ", "、": ", ", "《": " ", "》": " ", "【": " ",
    "】": " ",
}  # fmt: skip
_PRODUCTS = {"×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "∙": "\\cdot "}
_ROOTS = {"√": "", "∛": "[3]", "∜": "[4]"}
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ", "0123456789+-()n", strict=True))
_IS_SIGN = re.compile("[{}]".format("".join(map(re.escape, _GREEK | _SIGNS))))
_IS_SUPERSCRIPT = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_IS_SUBSCRIPT = re.compile(f"[{''.join(_SUBSCRIPTS)}]+")
_IS_FRACTION = re.compile(f"(?<!\\d)(\\d{{0,18}}) ?([{''.join(_FRACTIONS)}])")
_IS_ROOT = re.compile(r"([√∛∜])\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[a-z]))")

_MIXED = re.compile(r"(?<![\w.,)}/^\\])(\d{1,18})\s+(\d{1,18})/(\d{1,18})(?![\d/.]*\d)")
_E_NOTATION = re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([-+]?\d+)(?!\w)")
_SET_APART = re.compile(r"(?<=\d)(?:[\u00a0\u2009\u202f]|\\,|\\!|\{,\}|\\ |~)(?=\d{3}(?!\d))")
_BARE_THOUSANDS = re.compile(r"\s*([-+]?\d{1,3})((?:[ '’_]\d{3})+)(\.\d+)?\s*")
_SYMBOLS_OF_UNITS = re.compile(r"(?<=\d)\s*[°º℃℉](?:\s*[CF]\b)?|[€£¥₹₽₩₪₫₺฿₴₦￥]")
_OTHER_LETTERS = re.compile(r"[^\W\d_a-zA-Z\u00aa-\u024f\u0370-\u03ff]+")  # Latin and Greek stay
_ANSWER_WORD = re.compile(r"(?:答案|答え|答|정답|답)[应應]?[该該]?\s*(?:[是为為は은는:]|\s)*")


FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log exp sqrt max min gcd lcm mod".split()
)
"""Words that are mathematics without a backslash too."""

_THINGS = re.compile(r"\s*([-+]?\d[\d.,]*)\s+([^\W\d_]{3,})(?:\s+[^\W\d_]+)*\.?\s*")


def expression(text: str) -> str:
    """An expression, such as the content of a box, as LaTeX: without units that are signs or words of another
    alphabet, and with numbers that have no space in them."""
    text = _signs(_SYMBOLS_OF_UNITS.sub("", text))
    if text.count("$") == 1:  # a price; two are delimiters
        text = text.replace("\\$", "").replace("$", "")
    if not text.isascii():
        kept = [part for part in _OTHER_LETTERS.split(text) if part.strip(" .,:;!?()")]
        text = kept[0].strip().rstrip(",:;!?") if len(kept) == 1 else text
    if (things := _THINGS.fullmatch(text)) and things[2] not in FUNCTIONS:
        text = things[1]
    if bare := _BARE_THOUSANDS.fullmatch(text):
        text = bare[1] + re.sub(r"\D", "", bare[2]) + (bare[3] or "")
    return re.sub(" {2,}", " ", _E_NOTATION.sub(r"\1\\times 10^{\2}", text))


def prose(text: str) -> str:
    """A text with an expression in it: as expression(), but words of other alphabets become separators."""
    text = _signs(_SYMBOLS_OF_UNITS.sub("", text), plain=True)
    if not text.isascii():
        text = _OTHER_LETTERS.sub(" ; ", _ANSWER_WORD.sub(" answer: ", text))
    return _E_NOTATION.sub(r"\1*10^(\2)", text)


def _signs(text: str, *, plain: bool = False) -> str:
    """
    Args:
        plain: write powers and products in ASCII, not LaTeX, as the library reads them outside delimiters.
    """
    text = _SET_APART.sub("", text)
    if not text.isascii():
        text = _IS_FRACTION.sub(lambda m: _fraction(m[1] or "0", *_FRACTIONS[m[2]]), text)
        power, product = ("^({})", "*") if plain else ("^{{{}}}", "")
        text = _IS_SUPERSCRIPT.sub(lambda m: power.format(_spelled(m[0], _SUPERSCRIPTS)), text)
        text = _IS_SUBSCRIPT.sub(lambda m: f"_{{{_spelled(m[0], _SUBSCRIPTS)}}}", text)
        text = "".join(map(_ascii, text))
        for sign, spelled in _PRODUCTS.items():
            text = text.replace(sign, product or spelled)
        text = _IS_ROOT.sub(lambda m: f"\\sqrt{_ROOTS[m[1]]}{{{m[2] or m[3] or m[4] or ''}}}", text)
        text = _IS_SIGN.sub(lambda m: _GREEK.get(m[0]) or _SIGNS[m[0]], text)
    return _MIXED.sub(_mixed, text)


def _ascii(char: str) -> str:
    """The ASCII character for a full-width one or a digit of another script."""
    if char.isascii():
        return char
    if 0xFF01 <= ord(char) <= 0xFF5E:
        return chr(ord(char) - 0xFEE0) + (" " if char in "，：；！？" else "")
    return str(unicodedata.decimal(char)) if char.isdecimal() else char


def _spelled(text: str, table: dict[str, str]) -> str:
    return "".join(table[char] for char in text)


def _mixed(match: re.Match[str]) -> str:
    whole, above, below = match.groups()
    return _fraction(whole, above, below) if int(above) < int(below) else match[0]


def _fraction(whole: str, above: str, below: str) -> str:
    return f"\\frac{{{int(whole) * int(below) + int(above)}}}{{{below}}}"
