"""What a page of documentation tells its reader to type: commands, configs, Python files, make targets."""

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PLACES = ("README", "CONTRIBUTING", "docs/*", "docker/*", "launchers/*")
PAGES = [path for place in _PLACES for path in sorted(ROOT.glob(f"{place}.md"))]
RECIPES = sorted(ROOT.glob("configs/*.yaml"))

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?:^ {4}.*\n|^\n(?= {4}))+", re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_OURS = re.compile(r"(hybridrl|make|python -m benchmarks\S*)(\s|$)")
_PROMPT = "$ "
_SHOWN_FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")
_SECTIONS = "data|reward|algorithm|batch|actor|critic|rollout|evaluate|cluster|run|observe"

OTHERS = {
    "git",
    "kubectl",
    "mlflow",
    "wandb",
    "tensorboard",
    "scancel",
    "docker",
    "enroot",
    "apptainer",
    "hf",
    "for",
}
"""Programs of other people that a page may show behind a prompt."""


@dataclass(frozen=True)
class Command:
    page: str
    text: str
    fails: bool = False
    """The page shows the error that it ends with."""

    inline: bool = False
    """Named in a sentence, perhaps without all that it needs."""

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def blocks(text: str) -> list[str]:
    """Blocks of code without their indentation: fenced ones, and the paragraphs of indented ones."""
    fenced = [body for _, body in _FENCED.findall(text)]
    indented = [textwrap.dedent(block) for block in _INDENTED.findall(_FENCED.sub("", text))]
    paragraphs = [part for block in indented for part in block.split("\n\n")]
    return [block.strip("\n") for block in [*fenced, *paragraphs] if block.strip()]


def commands(page: Path) -> list[Command]:
    """Every command of a page, or of the comment at the head of a config."""
    text, name = page.read_text("utf-8"), str(page.relative_to(ROOT))
    if page.suffix == ".yaml":
        text = "\n".join(line[1:] for line in text.splitlines() if line.startswith("#"))
    found = [command for block in blocks(text) for command in _of_block(name, block)]
    prose = _INDENTED.sub("", _FENCED.sub("", text))
    inline = [code for code in _INLINE.findall(prose) if _OURS.match(code)]
    return [*found, *(Command(name, code, inline=True) for code in inline)]


def configs(page: Path) -> list[str]:
    """Blocks that are a config, or sections of one."""
    found = blocks(page.read_text("utf-8"))
    return [block for block in found if re.match(rf"(#.*\n)*(model|{_SECTIONS}):", block)]


def shown_files(page: Path) -> dict[str, str]:
    """Path -> content of the Python files and configs that a page shows whole, with a first line "# PATH"."""
    found = {}
    for block in blocks(page.read_text("utf-8")):
        if named := _SHOWN_FILE.match(block):
            found[named[1]] = block
    return found


def python_files(page: Path) -> dict[str, str]:
    """Those of shown_files that are Python."""
    return {name: text for name, text in shown_files(page).items() if name.endswith(".py")}


def named_keys(page: Path) -> set[str]:
    """Dotted names that begin with a section of the config; of tables that translate, in our column."""
    text = page.read_text("utf-8")
    if page.name.startswith("coming_from"):
        text = "\n".join(_cell(line, 2) for line in text.splitlines() if line.startswith("|"))
    pattern = rf"(?<![\w./-])(?:{_SECTIONS})(?:\.[a-z_]+)+(?![\w/*])"
    return {key for code in _INLINE.findall(text) for key in re.findall(pattern, code)}


def named_files(page: Path) -> set[str]:
    """Files of this project that a page names; one in capitals stands for any."""
    text = page.read_text("utf-8")
    found = re.findall(r"(?<![\w/])(?:configs|docs|benchmarks|launchers|hybridrl|tests)/[\w./-]+\.\w+", text)
    return {name for name in found if name == name.lower()}


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def _of_block(page: str, block: str) -> list[Command]:
    lines = block.replace("\\\n", " ").splitlines()
    found = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        prompted = line.startswith(_PROMPT)
        text = re.split(r"\s{2,}", line.removeprefix(_PROMPT).strip())[0]
        if prompted or _OURS.match(text):
            found.append(Command(page, text, fails=prompted and following.startswith("error:")))
    return found


def _cell(row: str, number: int) -> str:
    return row.split("|")[number] if row.count("|") > number else ""
