"""`hybridrl bench`: measure a fixed workload on this machine, and compare it with what is stored."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from hybridrl.bench.names import BENCHES, NameOfBench, Peer
from hybridrl.cli.console import out, say, show

if TYPE_CHECKING:
    from hybridrl.bench.run import Request


def _known(name: str) -> str:
    if name not in BENCHES:
        raise typer.BadParameter(f"no benchmark {name!r}; there are {', '.join(BENCHES)}")
    return name


def bench(
    name: Annotated[
        str,
        typer.Argument(
            metavar="BENCH",
            help="What is measured, as said above.",
            callback=_known,
            autocompletion=lambda: list(BENCHES),
        ),
    ],
    case: Annotated[
        list[str] | None, typer.Option(help="Only this case; may be given several times.", show_default=False)
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Repeats that count; default: the case's.", show_default=False)
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Tiny sizes, to see that it runs; the numbers mean nothing.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with the stored run; exit code 1 if something got worse.")
    ] = False,
    store: Annotated[bool, typer.Option("--store", help="Keep the rows in the folder of results.")] = False,
    results: Annotated[Path, typer.Option(help="Folder of results.")] = Path("benchmarks/results"),
    tolerance: Annotated[
        float, typer.Option(min=1.0, help="How many times worse a metric may be with --check.")
    ] = 1.15,
    peer: Annotated[
        Peer | None, typer.Option(help="With e2e: another framework on the same work.", show_default=False)
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="With --peer verl or openrlhf: what it printed.", show_default=False)
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Folder of launches; default: runs/bench.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each case as a line of JSON.")] = False,
) -> None:
    """Measure this machine on fixed workloads.

    step: optimizer steps of the trainer, beside bare Megatron-core and transformers

    rollout: many short answers of one engine, beside the bare SGLang

    swap: the weight update, beside Megatron-core's resharding and a full gather

    e2e: whole runs, with --peer beside another framework

    plan: plans of weight updates of large models, and the search for a layout

    controller: the driver's own work in a step of 65,536 answers

    streaming: asynchronous modes on a fake clock, and the driver's messages
    """
    from hybridrl.bench.run import Request

    sizes = Request(cases=case or (), smoke=smoke, repeats=repeats)
    request = replace(sizes, check=check, store=store, results=results, tolerance=tolerance)
    raise typer.Exit(_measure(cast(NameOfBench, name), request, peer, log, to, as_json=as_json))


def _measure(
    name: NameOfBench,
    request: "Request",
    peer: Peer | None,
    log: Path | None,
    to: Path | None,
    *,
    as_json: bool,
) -> int:
    """The exit code, once all is measured and said, or launches are written."""
    from hybridrl.bench import run as benching
    from hybridrl.bench.peers import contest

    benching.refuse_together(name, request, peer)
    measuring = contest.contest_of(peer, log)
    measured = benching.bench_of(name)
    if peer and contest.is_launched_by_hand(peer):
        request = replace(request, cases=[case.name for case in benching.on_gpus(measured, request)])
        if log is None:
            for heading, text in contest.write_launches(peer, measured, request.cases, to):
                say(heading, text)
            return 0
    found = benching.run(measured, request, (lambda *_: None) if as_json else say, measuring)
    for row in found.rows if as_json else ():
        out.print(json.dumps(row), soft_wrap=True)
    for line in () if as_json else benching.verdicts(found):
        show(line, indent=10)
    return 0 if found.holds else 1
