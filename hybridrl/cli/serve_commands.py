"""Commands that ask a model: eval and chat.

What is slow to import is imported where it is used, so that --help answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from hybridrl.cli.console import AsJson, Overrides, err, out, say, show, tell

What = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG|RUN|MODEL",
        help="A config, the folder of a run, or a model: folder or hub name.",
        show_default=False,
    ),
]
ConfigOfModel = Annotated[
    Path | None,
    typer.Option("--config", help="For a MODEL: the config whose data, reward and engine are used."),
]
Step = Annotated[int | None, typer.Option(min=0, help="Checkpoint of a RUN; default: the newest.")]


def evaluate(
    what: What,
    overrides: Overrides = None,
    config: ConfigOfModel = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="SET", help="A held-out set: file, hub data set or task; more than once."),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Answers to each prompt.")] = None,
    passes: Annotated[
        list[int] | None, typer.Option("--pass", metavar="K", min=1, help="pass@K; more than once.")
    ] = None,
    solved_above: Annotated[
        float | None, typer.Option(help="An answer with a higher reward is solved; default 0.")
    ] = None,
    step: Step = None,
    to: Annotated[Path | None, typer.Option("--to", "-o", help="Write the JSON object to a file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer held-out prompts and score the answers: mean@k and pass@k with 95 % intervals."""
    from hybridrl.config.files import atomic_write_json
    from hybridrl.serve import evaluation, results
    from hybridrl.serve.named import named

    request = evaluation.Request(
        sets=data or (), samples=samples, passes=sorted(set(passes or ())), solved_above=solved_above
    )
    of = named(what, overrides or [], config=config, step=step)
    found = evaluation.evaluate(of, request, tell_err if as_json else say)
    if to is not None:
        atomic_write_json(to, results.as_dict(found))
    kept = None if of.run is None else results.keep(found, of.run)
    logged = of.run is not None and kept is not None and results.log(found, of.run, kept)
    if as_json:
        return out.print_json(data=results.as_dict(found))
    show("")
    for line in results.lines(found):
        show(line)
    show("")
    for heading, text in results.notes(found):
        say(heading, text)
    for path in filter(None, (to, kept)):
        say("wrote", f"{path}{', and the MLflow run' if logged and path == kept else ''}")


def tell_err(heading: str, text: str) -> None:
    """A line for a person next to the JSON object for a program."""
    tell(f"{heading:<9}", text, gap=1, indent=10, file=err)


def chat(
    what: What,
    overrides: Overrides = None,
    config: ConfigOfModel = None,
    system: Annotated[
        str | None, typer.Option(help="System prompt; default: data.system_prompt.", show_default=False)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="0: greedy; default: rollout.temperature.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of an answer; default: rollout.max_response_tokens.")
    ] = None,
    step: Step = None,
) -> None:
    """Talk to a run's policy or a model, with the engine of the config; from a pipe, one message a line."""
    import sys

    from hybridrl.serve import chat as chatting
    from hybridrl.serve.named import named

    request = chatting.Request(system=system, temperature=temperature, max_tokens=max_tokens)
    of = named(what, overrides or [], config=config, step=step)
    try:
        chatting.chat(of, request, chatting.typed("> "), sys.stdout, tell_err)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
