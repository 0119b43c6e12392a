"""Draws system.svg, the picture of a run: python docs/pictures/system.py

Columns are GPUs, rows are programs on them; arrows are what flows during one step, numbered as in the legend.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 1040, 668
PICTURE = Path(__file__).with_name("system.svg")

LIGHT = {
    "paper": "#ffffff",
    "rim": "#d0d7de",
    "ink": "#1f2328",
    "quiet": "#59636e",
    "card": "#f3f5f8",
    "controller": "#e7e3f7",
    "controller-rim": "#6e56cf",
    "trainer": "#dbeafe",
    "trainer-rim": "#1d6fd8",
    "engine": "#d9f2e3",
    "engine-rim": "#1a7f4b",
    "reward": "#fdeccf",
    "reward-rim": "#b26a00",
    "store": "#eceff3",
    "store-rim": "#6b7683",
    "flow": "#59636e",
    "weights": "#cf222e",
}
DARK = {
    "paper": "#0d1117",
    "rim": "#3d444d",
    "ink": "#f0f6fc",
    "quiet": "#a5b0bd",
    "card": "#161c24",
    "controller": "#2a2350",
    "controller-rim": "#a593f0",
    "trainer": "#12305a",
    "trainer-rim": "#6cb0ff",
    "engine": "#113b27",
    "engine-rim": "#57c98a",
    "reward": "#46300b",
    "reward-rim": "#eaa94a",
    "store": "#232a33",
    "store-rim": "#9aa5b1",
    "flow": "#a5b0bd",
    "weights": "#ff7b72",
}

LEGEND = (
    "Prompts and their seeds go to the engines.",
    "Answers are judged by the reward workers.",
    "The controller gets one reward for each answer.",
    "Tokens and log-probabilities go from engine to trainer.",
    "The minibatch plan and advantages go to the ranks.",
    "New weights are written in place into the engines' tensors.",
    "Every step writes its metrics, times and samples.",
    "Checkpoints load on any other parallel layout.",
)


@dataclass(frozen=True)
class Box:
    """A rectangle, by its corner and size in pixels."""

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def bottom(self) -> int:
        return self.y + self.height

    @property
    def middle(self) -> tuple[int, int]:
        return self.x + self.width // 2, self.y + self.height // 2


CARDS = tuple(Box(x, 196, 130, 316) for x in (170, 316, 494, 640))
PROMPTS = Box(24, 42, 112, 78)
CONTROLLER = Box(170, 28, 600, 106)
METRICS = Box(830, 22, 186, 78)
STORE = Box(24, 226, 112, 244)
ENGINES = (Box(182, 226, 252, 78), Box(506, 226, 252, 78))
REWARDS = Box(830, 226, 186, 78)
TRAINER = Box(182, 376, 576, 94)
CHECKPOINTS = Box(830, 384, 186, 78)


def main() -> None:
    PICTURE.write_text(draw(), "utf-8")


def draw() -> str:
    """The whole picture as SVG; the same text on every machine."""
    parts = [*_frame(), *_boxes(), *_flows(), *_legend(), "</svg>"]
    return "\n".join(parts) + "\n"


def _frame() -> list[str]:
    title = (
        "A run of hybridrl: controller, engines and trainer ranks on the same GPUs, reward workers, metrics"
    )
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        ' aria-labelledby="title">',
        f'<title id="title">{title}</title>',
        f"<style>\n{_style()}\n</style>",
        "<defs>",
        *(_arrow_head(kind) for kind in ("flow", "weights")),
        "</defs>",
        f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="10"/>',
    ]


def _style() -> str:
    return "\n".join(
        [
            f":root {{ {_variables(LIGHT)} }}",
            f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}",
            'text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;'
            " fill: var(--ink); font-size: 13px; text-anchor: middle; }",
            "text.name { font-size: 15px; font-weight: 600; }",
            "text.quiet { fill: var(--quiet); font-size: 12px; }",
            "text.left { text-anchor: start; }",
            "text.digit { fill: var(--paper); font-size: 12px; font-weight: 700; }",
            ".paper { fill: var(--paper); stroke: var(--rim); }",
            ".card { fill: var(--card); stroke: var(--rim); stroke-dasharray: 4 3; }",
            *(
                f".{kind} {{ fill: var(--{kind}); stroke: var(--{kind}-rim); stroke-width: 1.5; }}"
                for kind in ("controller", "trainer", "engine", "reward", "store")
            ),
            ".rank { fill: var(--paper); stroke: var(--trainer-rim); }",
            *(
                f"path.{kind} {{ fill: none; stroke: var(--{kind}); stroke-width: {width}; }}"
                f" .{kind}-fill {{ fill: var(--{kind}); }}"
                for kind, width in (("flow", 1.6), ("weights", 2.4))
            ),
        ]
    )


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


def _arrow_head(kind: str) -> str:
    return (
        f'<marker id="{kind}-head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="9" markerHeight="9"'
        f' markerUnits="userSpaceOnUse" orient="auto"><path class="{kind}-fill" d="M0 0L10 5L0 10z"/>'
        "</marker>"
    )


def _boxes() -> list[str]:
    drawn = [_rect(card, "card") for card in CARDS]
    drawn += [_text(card.middle[0], card.bottom - 14, f"GPU {i}", "quiet") for i, card in enumerate(CARDS)]
    drawn += _titled(PROMPTS, "store", "Prompts", "parquet, jsonl,", "or a task")
    drawn += _titled(
        CONTROLLER,
        "controller",
        "Controller",
        "one process that runs the loop; it holds lengths, rewards and references, but no tokens",
        "fill the buffer  →  advantages  →  old log-probabilities  →  optimizer steps  →  weight update",
    )
    drawn += _titled(METRICS, "store", "Metrics", "MLflow, metrics.jsonl,", "samples, curve")
    drawn += _titled(STORE, "store", "Tokens", "in Ray's", "object store")
    for i, engine in enumerate(ENGINES):
        drawn += _titled(engine, "engine", f"Engine {i}", "SGLang, TP2")
    drawn += _titled(REWARDS, "reward", "Reward workers", "rules, tasks,", "your own function")
    drawn += [
        _rect(TRAINER, "trainer"),
        _text(TRAINER.middle[0], TRAINER.y + 26, "Trainer: Megatron-core, TP4", "name"),
    ]
    for i, card in enumerate(CARDS):
        chip = Box(card.x + 20, TRAINER.y + 42, card.width - 40, 36)
        drawn += [_rect(chip, "rank", radius=5), _text(chip.middle[0], chip.middle[1] + 5, f"rank {i}")]
    return drawn + _titled(CHECKPOINTS, "store", "Checkpoints", "and the export, a", "Hugging Face folder")


def _flows() -> list[str]:
    """Arrows, and what flows along each."""
    drawn = []
    for engine in ENGINES:
        x = engine.middle[0]
        drawn += [
            *_flow([(x, CONTROLLER.bottom), (x, engine.y)], 1, (x, 166)),
            _label(x + 16, 170, "prompts"),
        ]
    row = ENGINES[1].middle[1]
    gap = (ENGINES[1].right + REWARDS.x) // 2
    drawn += [*_flow([(ENGINES[1].right, row), (REWARDS.x, row)], 2, (gap, row))]
    drawn += [_text(gap + 3, row - 18, "answers", "quiet")]
    up, into = REWARDS.middle[0], 114
    drawn += _flow([(up, REWARDS.y), (up, into), (CONTROLLER.right, into)], 3, (up, 166))
    drawn += [_label(up + 16, 170, "rewards")]
    low = TRAINER.middle[1]
    beside = (STORE.right + TRAINER.x) // 2 - 3
    drawn += _flow([(ENGINES[0].x, row), (STORE.right, row)], 4, (beside + 5, row))
    drawn += _flow([(STORE.right, low), (TRAINER.x, low)], 4, (beside, low))
    middle = TRAINER.middle[0]
    drawn += _flow([(middle, CONTROLLER.bottom), (middle, TRAINER.y)], 5, (middle, 166))
    drawn += [_label(middle + 16, 170, "plan")]
    for card in CARDS:
        x = card.middle[0]
        drawn += _flow([(x, TRAINER.y), (x, ENGINES[0].bottom)], 6, (x, 344), kind="weights")
        drawn += [_label(x + 15, 348, "weights")]
    out = METRICS.middle[1]
    drawn += _flow([(CONTROLLER.right, out), (METRICS.x, out)], 7, (800 - 2, out))
    drawn += _flow([(TRAINER.right, low), (CHECKPOINTS.x, low)], 8, (gap, low))
    return drawn + _flow([(PROMPTS.right, PROMPTS.middle[1]), (CONTROLLER.x, PROMPTS.middle[1])])


def _legend() -> list[str]:
    drawn = []
    for i, meaning in enumerate(LEGEND):
        x, y = 40 + 500 * (i // 4), 545 + 25 * (i % 4)
        drawn += [
            _digit(i + 1, (x, y), "weights" if i == 5 else "flow"),
            _text(x + 20, y + 5, meaning, "left"),
        ]
    turns = (
        "With batch.max_lag: 0 the engines sleep while the trainer works and wake up with the new weights,"
        " so that both use the same GPU memory."
    )
    return [*drawn, _text(28, 652, turns, "left quiet")]


def _titled(box: Box, kind: str, name: str, *lines: str) -> list[str]:
    """A box with a name and lines under it, all centred."""
    x, top = box.middle[0], box.middle[1] - 9 * len(lines) + 5
    below = [_text(x, top + 2 + 18 * (i + 1), line, "quiet") for i, line in enumerate(lines) if line]
    return [_rect(box, kind), _text(x, top, name, "name"), *below]


def _rect(box: Box, kind: str, *, radius: int = 8) -> str:
    return (
        f'<rect class="{kind}" x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}"'
        f' rx="{radius}"/>'
    )


def _text(x: int, y: int, words: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(words)}</text>'


def _label(x: int, y: int, words: str) -> str:
    return _text(x, y, words, "left quiet")


def _flow(
    points: Sequence[tuple[int, int]],
    number: int | None = None,
    at: tuple[int, int] = (0, 0),
    *,
    kind: str = "flow",
) -> list[str]:
    """An arrow through points, with its number in a circle at `at`."""
    way = "L".join(f"{x} {y}" for x, y in points)
    path = f'<path class="{kind}" d="M{way}" marker-end="url(#{kind}-head)"/>'
    return [path, _digit(number, at, kind)] if number else [path]


def _digit(number: int, at: tuple[int, int], kind: str) -> str:
    x, y = at
    return f'<circle class="{kind}-fill" cx="{x}" cy="{y}" r="10"/>{_text(x, y + 4, str(number), "digit")}'


if __name__ == "__main__":
    main()
