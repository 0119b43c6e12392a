"""`hybridrl data`: list the tasks that make rows, and show what the model is given."""

from hybridrl.cli.console import AsJson, ConfigPath, Overrides, say
from hybridrl.cli.console import show as show_text
from hybridrl.cli.help import add, group
from hybridrl.cli.reward_commands import show_plugins


def show(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print the first training prompt as the model is given it: text, tokens with their ids, stop tokens."""
    from hybridrl.config.kinds import load_for
    from hybridrl.launch import show_data

    for heading, text in show_data.show(load_for("launch", config, overrides or [])):
        say(heading, text)


def list_all(as_json: AsJson = False) -> None:
    """Every built-in task that makes rows, with its options, and the kinds of files that are read."""
    show_plugins("hybridrl.data.tasks", as_json=as_json)
    if not as_json:
        from hybridrl.config.data_files import NAMED

        show_text(
            f"\nA task is named in data.train = {{task: NAME, ...}}; rows also come from files ({NAMED}),"
        )
        show_text("patterns and lists of files, and from data sets of the hub: {hub: openai/gsm8k}.")


data_app = group(
    "List the tasks that make rows, and show what the model is given.",
    "hybridrl data list",
    "hybridrl data show configs/quickstart.yaml",
)
add(data_app, list_all, "hybridrl data list", "hybridrl data list --json", name="list")
add(
    data_app,
    show,
    "hybridrl data show configs/quickstart.yaml",
    "hybridrl data show configs/quickstart.yaml data.chat_template=none",
)
