"""`hybridrl data`: show what the model is given."""

from hybridrl.cli.console import ConfigPath, Overrides, say
from hybridrl.cli.help import add, group


def show(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print the first training prompt as the model is given it: text, tokens with their ids, stop tokens."""
    from hybridrl.config.kinds import load_for
    from hybridrl.launch import show_data

    for heading, text in show_data.show(load_for("launch", config, overrides or [])):
        say(heading, text)


data_app = group("Show what the model is given.", "hybridrl data show configs/quickstart.yaml")
add(
    data_app,
    show,
    "hybridrl data show configs/quickstart.yaml",
    "hybridrl data show configs/quickstart.yaml data.chat_template=none",
)
