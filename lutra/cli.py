# SPDX-License-Identifier: Apache-2.0
"""Command line: each command is a thin wrapper over its function in ``lutra.api``.

With ``--json`` standard output is one JSON object and nothing else; progress and errors go to standard error. Exit codes: 0, 1 a mismatch,
2 anything that the user, the model or a tool got wrong, 130 interrupted.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from lutra.hls_models.errors import LutraError, MismatchError

__all__ = ["app", "main"]

app = typer.Typer(
    name="lutra", add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else there.")]
Config = Annotated[str, typer.Option("--config", "-c", metavar="C", help="A preset's name or a YAML file.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="RUN", help="Run folder; an earlier run there is replaced.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face folder, a .gguf file, a config.json (shapes only), or a shipped name.")]
Seed = Annotated[int, typer.Option(help="Kept in manifest and report; greedy decoding draws nothing at random.", min=0)]
Prompt = Annotated[str | None, typer.Option(help="Text to start from.", show_default="a line of Shakespeare")]


def _examples(*lines: str) -> str:
    """The epilog of a command's help."""
    return "\n\n".join(["[bold]Example[/]" if len(lines) == 1 else "[bold]Examples[/]", *(f"[cyan]{line}[/]" for line in lines)])


@app.callback(invoke_without_command=True)
def _root(context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Transformer checkpoint in; table-lookup hardware, proof and cycle-accurate performance numbers out."""
    if version:
        from importlib.metadata import version as installed

        print(f"lutra {installed('lutra')}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(epilog=_examples("lutra demo", 'lutra demo --prompt "ROMEO:" --tokens 120 -o runs/romeo'))
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="Run folder.")] = Path("runs/demo"),
    prompt: Prompt = None,
    tokens: Annotated[int, typer.Option(help="Tokens to write after the prompt.", min=1)] = 80,
    seed: Seed = 1,
    as_json: Json = False,
) -> None:
    """A small language model, written out by simulated hardware, every word of it checked."""
    from lutra import api

    _show_report(api.demo(out, prompt=prompt, tokens=tokens, seed=seed, on_text=None if as_json else _show_text), out, as_json, text=True)


@app.command("compile", epilog=_examples("lutra compile tiny-shakespeare --config tiny -o runs/tiny"))
def compile_(model: Model, config: Config = "tiny", out: Out = None, as_json: Json = False) -> None:
    """Checkpoint to program, memory image, Verilog and manifest, in a run folder."""
    from lutra import api

    run = api.compile_model(model, config, out)
    if as_json:
        return _print_json({"run": str(run.path), **run.manifest.model_dump(mode="json", include={"config", "inputs", "files"})})
    print(f"{run.path}: {len(run.manifest.files)} files; " + ("of a shape alone" if run.shape_only else f"lutra cosim {run.path} runs them"))


@app.command(epilog=_examples("lutra cosim runs/tiny --tokens 16", 'lutra cosim runs/tiny --prompt "To be, " --waves'))
def cosim(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A compiled run folder.")],
    prompt: Prompt = None,
    tokens: Annotated[int, typer.Option(help="Tokens to write after the prompt.", min=1)] = 32,
    seed: Seed = 1,
    model: Annotated[str | None, typer.Option(help="The checkpoint that the run was compiled from: adds the arithmetic's accuracy beside float64.")] = None,
    waves: Annotated[bool, typer.Option("--waves", help="Keep a waveform (slow, large).")] = False,
    drafts: Annotated[int, typer.Option(metavar="N", help="Drafted tokens that a pass verifies, at most; the text stays the same.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Runs a compiled model on its RTL; compares every word and every cycle with the models."""
    from lutra import api

    found = api.cosim(run, seed=seed, tokens=tokens, prompt=prompt, model=model, waves=waves, drafts=drafts, on_text=None if as_json else _show_text)
    _show_report(found, run, as_json, text=True)


@app.command(
    epilog=_examples(
        "lutra estimate tiny-shakespeare --config tiny --prompt 32 --context 96",
        "lutra estimate gpt3-xl --config pim-gpt --context 1024 --sweep 1,128,512 --channels 8,16",
    )
)
def estimate(
    model: Model,
    config: Config = "tiny",
    prompt: Annotated[
        int | None, typer.Option(metavar="P", help="Tokens to prefill.", show_default="128; on PIM none: as many sequential tokens", min=1)
    ] = None,
    context: Annotated[int | None, typer.Option(metavar="N", help="Context of the decoded token, itself included.", show_default="P + 1", min=1)] = None,
    rescored: Annotated[float | None, typer.Option(metavar="SHARE", help="Head in two planes: rows scored again, of all.", show_default="1: all")] = None,
    refresh: Annotated[bool, typer.Option("--refresh/--no-refresh", help="DRAM targets: with the memory's refresh or without.")] = True,
    sweep: Annotated[str, typer.Option(metavar="N,N,…", help="DRAM targets: further contexts.")] = "",
    channels: Annotated[str, typer.Option(metavar="C,C,…", help="DRAM targets: the same with other numbers of channels.")] = "",
    ignore_capacity: Annotated[bool, typer.Option("--ignore-capacity", help="DRAM targets: models larger than the device, marked so.")] = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Cycle-accurate report without a simulator: prefill of P tokens, decode at context N."""
    from lutra import api

    dram: dict[str, Any] = {"refresh": refresh, "sweep": _numbers("sweep", sweep), "channels": _numbers("channels", channels)}
    found = api.estimate(model, config, prompt=prompt, context=context, out=out, rescored=rescored, ignore_capacity=ignore_capacity, **dram)
    _show_report(found, out, as_json)


@app.command(
    epilog=_examples(
        "lutra explore bitnet-0.73b --device kv260 -o runs/search", "lutra explore bitnet-2b4t --goal ttft --budget 64 --scheduler tcp://host:8786"
    )
)
def explore(
    model: Model,
    device: Annotated[str, typer.Option(metavar="D", help="A shipped device's name or a YAML file.")] = "kv260",
    goal: Annotated[
        str,
        typer.Option(metavar="decode|ttft|bytes|energy", help="What is minimised; energy is read as bytes moved: an FPGA's joules have no measured source."),
    ] = "decode",
    prompt: Annotated[int, typer.Option(metavar="P", help="Tokens to prefill.", min=1)] = 128,
    context: Annotated[int | None, typer.Option(metavar="N", help="Context of the decoded token, itself included.", show_default="P + 1", min=1)] = None,
    budget: Annotated[int, typer.Option(help="Cores that are counted exactly, at most.", min=1)] = 128,
    seed: Annotated[int, typer.Option(help="Of what is drawn; equal seeds and budgets give equal results.", min=0)] = 1,
    scheduler: Annotated[str | None, typer.Option(metavar="tcp://HOST:PORT", help="A Dask scheduler: on its machines.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes.", show_default="all cores", min=1)] = None,
    limit: Annotated[float | None, typer.Option(help="Share of every total of the device that a core may take.", show_default="the device's")] = None,
    config: Annotated[str | None, typer.Option("--config", "-c", metavar="C", help="Where the search starts.", show_default="the device's preset")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Searches array, lanes, buffers and ports under a device's resources; prints the Pareto front. Ports move no more than the peak of the device's memory."""
    from lutra import api

    found = api.explore(
        model, device, goal=goal, prompt=prompt, context=context, budget=budget, seed=seed, jobs=jobs, scheduler=scheduler, limit=limit, config=config, out=out
    )
    if as_json:
        return _print_json({**({"run": str(out)} if out else {}), **found.facts()})
    from lutra.exploration.output import TABLE_WIDTH, table

    if goal == "energy":
        print("energy: read as bytes moved per token; the joules of an FPGA have no measured source")
    console = _console()
    console.width = max(console.width, TABLE_WIDTH)
    console.print(table(found))
    if out:
        print(f"\n{out}: explore.json, explore.svg")


def _numbers(name: str, text: str) -> list[int]:
    """1,2,4 as numbers."""
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError:
        raise LutraError(f"{name} must be numbers with commas between them, such as 1,2,4, not {text!r}") from None


@app.command(
    "eval", epilog=_examples("lutra eval tiny-shakespeare --text sonnets.txt", "lutra eval tiny-shakespeare --ids heldout.npy --logits logits.npz --json")
)
def evaluate(
    model: Model,
    config: Config = "tiny",
    text: Annotated[Path | None, typer.Option(metavar="FILE", help="A text file.")] = None,
    ids: Annotated[Path | None, typer.Option(metavar="IDS.npy", help="Token ids instead of text.")] = None,
    logits: Annotated[Path | None, typer.Option(metavar="OUT.npz", help="Keep both sets of logits: arrays golden and float64.")] = None,
    as_json: Json = False,
) -> None:
    """Does this hardware hurt my model? Loss and agreement of its arithmetic beside float64."""
    from dataclasses import asdict
    from math import exp

    from lutra import api

    found = api.evaluate(model, config, text=text, ids=ids, logits=logits)
    if as_json:
        return _print_json(asdict(found))
    print(f"tokens            {found.tokens:,}")
    for name, loss in (("golden", found.loss_golden), ("float64", found.loss_float64)):
        print(f"loss, {name:12s}{loss:.4f} nats per token (perplexity {exp(loss):.3f})")
    print(f"agreement         {100 * found.agreement:.2f} % of greedy choices")


@app.command(epilog=_examples("lutra verilog --config tiny -o core.v", "lutra verilog --config tiny --block tlmm"))
def verilog(
    config: Config = "tiny",
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="The model whose shape the core fits.")] = "tiny-shakespeare",
    block: Annotated[
        str | None,
        typer.Option(
            help="core, or one of loader, weights, tlmm, vector, attention, head; PIM: system, or one of channel, controller, mac, companion.",
            show_default="all of it",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="File to write.", show_default="standard output")] = None,
    as_json: Json = False,
) -> None:
    """Verilog only, of a whole core or of one block."""
    from lutra import api

    text = api.verilog(config, model=model, block=block)
    module = text.split("module ", 1)[1].split("(", 1)[0].split(";", 1)[0].strip() if block is None else f"lutra_{block}"
    if out is not None:
        api.write_file(out, text)
    if as_json:
        return _print_json({"module": module, **({"verilog": text} if out is None else {"file": str(out)})})
    print(text if out is None else f"{out}: module {module}, {text.count(chr(10)):,} lines", end="" if out is None else "\n")


@app.command(
    epilog=_examples(
        "lutra fpga runs/tiny --board ulx3s-85f --seeds 5", "lutra fpga runs/tiny --board icebreaker --block link", "lutra fpga runs/big --board kv260"
    )
)
def fpga(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A compiled run folder.")],
    board: Annotated[str, typer.Option("--board", "-b", metavar="B", help="A shipped board's name or a YAML file.")] = "ulx3s-85f",
    block: Annotated[str, typer.Option(help="core: all of it, with its model and serial link; or one of its blocks, or link.")] = "core",
    seeds: Annotated[int, typer.Option(help="Placements; the fastest is packed.", min=1)] = 1,
    clock: Annotated[float | None, typer.Option(metavar="HZ", help="Clock of the core.", show_default="the configuration's")] = None,
    as_json: Json = False,
) -> None:
    """Compiled run to bitstream by open tools: synthesis, place and route, packing, with utilisation and clock; or to a Vivado project (kv260)."""
    from lutra import api, vivado
    from lutra.fpga import table

    found = api.fpga(run, board, block=block, seeds=seeds, clock_hz=clock)
    folder = run / "fpga" / f"{found.board}-{found.block}"
    if as_json:
        return _print_json({"run": str(run), **found.model_dump(mode="json")})
    if isinstance(found, vivado.ProjectReport):
        print(vivado.table(found))
        return print(f"\n{folder}: README.md tells how to go on")
    print(table(found))
    print(f"\n{folder}: {found.bitstream}, report.json, logs")


@app.command(epilog=_examples("lutra talk --port /dev/ttyUSB0 --run runs/board", "lutra talk --port sim:runs/tiny --tokens 16 --prompt ROMEO:"))
def talk(
    port: Annotated[str, typer.Option("--port", "-p", metavar="PORT|sim:RUN", help="A serial port, or a compiled run whose RTL is simulated with its UART.")],
    run: Annotated[Path | None, typer.Option("--run", metavar="RUN", help="The run whose bitstream the board holds; not of sim:RUN.")] = None,
    prompts: Annotated[list[str] | None, typer.Option("--prompt", help="What to say; may be given several times.", show_default="lines that are typed")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of an answer, at most.", min=1)] = 64,
    baud: Annotated[float | None, typer.Option(help="Bits per second.", show_default="the boards' 1,000,000")] = None,
    as_json: Json = False,
) -> None:
    """Talks to a core on a board, or to its simulation: prompts go over the serial line, tokens come back as they are chosen."""
    from dataclasses import asdict

    from lutra import api

    turns = api.talk(
        port,
        _typed() if prompts is None else prompts,
        run=run,
        tokens=tokens,
        baud=baud,
        on_text=None if as_json else _show_text,
        on_notice=lambda text: print(f"\nlink: {text}", file=sys.stderr),
        patient=prompts is None,
    )
    print("" if not as_json else json.dumps({"port": port, "turns": [asdict(turn) for turn in turns]}, indent=1, ensure_ascii=False))


def _typed() -> Iterator[str]:
    """Lines of standard input; their ends belong to them."""
    while True:
        if sys.stdin.isatty():
            print("\n> ", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            return
        yield line


@app.command("pim-trace", epilog=_examples("lutra pim-trace layer.trace --preset gddr6-aim --no-refresh", "lutra pim-trace layer.trace --json"))
def pim_trace(
    trace: Annotated[Path, typer.Argument(metavar="FILE", help="A public AiM trace file.")],
    preset: Annotated[str, typer.Option(metavar="P", help="A timing preset's name or a YAML file.")] = "gddr6-aim",
    refresh: Annotated[bool, typer.Option(help="Refresh the banks; the open AiM simulator does not.")] = True,
    as_json: Json = False,
) -> None:
    """Cycles of a public AiM trace, requests in order as the open AiM simulator serves them."""
    from lutra import api

    found = api.pim_trace(trace, preset, refresh=refresh)
    share = {"share": found.hits / found.accesses} if found.accesses else {}  # none of nothing
    if as_json:
        return _print_json(
            {
                "trace": str(trace),
                "preset": preset,
                "refresh": refresh,
                "cycles": found.cycles,
                "ns": found.ns,
                "clock_ns": found.clock_ns,
                "channels": found.channels,
                "commands": found.commands,
                "row_hits": {"accesses": found.accesses, "hits": found.hits} | share,
            }
        )
    print(f"cycles    {found.cycles:,} of {found.clock_ns:g} ns{'' if refresh else ', no refresh'}")
    print(f"time      {found.ns / 1000:,.3f} us")
    print(f"row hits  {found.hits:,} of {found.accesses:,} accesses" + (f" ({100 * share['share']:.2f} %)" if share else ""))
    print(f"commands  {sum(found.commands.values()):,} on {found.channels} channels")
    for name, number in sorted(found.commands.items(), key=lambda entry: -entry[1]):
        print(f"  {name:8s}{number:,}")


@app.command(epilog=_examples("lutra report runs/demo", "lutra report runs/demo runs/wide --format html --format csv -o comparison"))
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders; two or more stand side by side.")],
    formats: Annotated[
        list[str] | None, typer.Option("--format", "-f", metavar="html|csv", help="Files to write; may be given twice.", show_default="html")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where the files go.", show_default="the first run")] = None,
    as_json: Json = False,
) -> None:
    """Figures in the terminal, and as HTML or CSV; several runs side by side."""
    from lutra import api

    named = api.reports(runs)
    files = api.report(runs, formats or ["html"], out)
    if as_json:
        return _print_json({"files": [str(file) for file in files], "runs": {label: found.facts() for label, found in named}})
    _print_tables(named)
    for file in files:
        print(file)


@app.command(epilog=_examples("lutra doctor"))
def doctor(as_json: Json = False) -> None:
    """What is installed, in which versions, and what a missing piece would enable."""
    from lutra.doctor import diagnose, facts

    found = diagnose()
    about = facts(found)
    if as_json:
        _print_json(about)
    else:
        from rich.markup import escape
        from rich.table import Table

        table = Table(
            title=f"lutra {about['lutra']} on {about['system']}, {about['cores']} cores", title_justify="left", box=None, padding=(0, 2), show_header=False
        )
        for piece in found:
            state = f"[green]{piece.version}[/]" if piece.version else f"[{'red' if piece.required else 'yellow'}]missing[/]"
            table.add_row(piece.name, state, escape(piece.enables + (f"; get it: {piece.how}" if not piece.version and piece.how else "")))
        _console().print(table)
    if not about["ok"]:
        missing = ", ".join(piece.name for piece in found if piece.required and not piece.version)
        raise LutraError(f"missing: {missing}")


@app.command(epilog=_examples("lutra presets", "lutra presets --schema > lutra.schema.json"))
def presets(
    schema: Annotated[bool, typer.Option("--schema", help="The configuration's JSON schema: editors check and complete YAML with it.")] = False,
    as_json: Json = False,
) -> None:
    """Shipped configurations, devices, models and shapes."""
    if schema:
        from pydantic import TypeAdapter

        from lutra.inputs import AnyConfig

        return _print_json(TypeAdapter(AnyConfig).json_schema())
    from lutra import api

    found = api.shipped()
    if as_json:
        return _print_json(found)
    for title, names in found.items():
        print(f"{title:9s}{', '.join(names) or 'none'}")


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


def _print_tables(named: list[tuple[str, Any]]) -> None:
    from lutra.report import terminal

    _console().print(terminal(named))


def _show_text(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _show_report(found: Any, run: Path | None, as_json: bool, *, text: bool = False) -> None:
    """A command's report: JSON alone, or the figures below the text that was written."""
    if as_json:
        return _print_json({**({"run": str(run)} if run else {}), **found.facts()})
    if text:
        print("\n")
    _print_tables([(str(run or found.model.name), found)])
    if run:
        page = run / "report.html"
        print(f"\n{page}" if page.exists() else f"\n{run}: lutra report {run} makes a page of it")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point: one line on standard error for every mistake, never a traceback for the user's."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through the cleaning-up, as an interrupt does
    try:
        code = app(args=arguments, prog_name="lutra", standalone_mode=False)
        sys.stdout.flush()
        if code == 130:  # typer has turned an interrupt into this
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except MismatchError as error:
        _fail(error, 1)
    except LutraError as error:
        _fail(error, 2)
    except typer.TyperException as error:
        _fail(error.format_message().rstrip("."), 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    except BrokenPipeError:  # whoever read our output is gone: the interpreter must not complain when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:  # a full disk, a folder that may not be read
        _fail(f"{error.filename or 'system'}: {error.strerror or error}", 2)


def _fail(error: object, code: int) -> NoReturn:
    print("error: " + " ".join(str(error).split("\n")), file=sys.stderr)
    sys.exit(code)
