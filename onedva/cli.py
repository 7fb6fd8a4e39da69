"""`onedva …`: one thin function per verb. Each imports its part when it is called, so `onedva --help` loads neither
NumPy nor a backend.

Results go to stdout, logs and progress to stderr. What a user can get wrong ends in one line on stderr and exit 2,
Ctrl-C in exit 130 with nothing half-written."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from onedva.commands.ablation import ablate
from onedva.commands.console import Terminal
from onedva.commands.engines import engines
from onedva.commands.evaluation import evaluate
from onedva.commands.failures import Verbs
from onedva.commands.generate_verb import generate
from onedva.commands.generation import scenes, tokenize, train_ldm
from onedva.commands.model_verbs import export
from onedva.commands.odva import thin
from onedva.commands.options import (
    Backend,
    Batch,
    Device,
    Dtype,
    FollowCamera,
    Force,
    Json,
    KeyframeInterval,
    Lengths,
    LowLatency,
    Model,
    Quantiser,
    Quiet,
    Seed,
    Source,
    Steps,
    Threads,
    Tokens,
)
from onedva.commands.serve import serve
from onedva.commands.shard_verb import shard
from onedva.commands.training import train

__all__ = ["app", "main"]


# No rich markup: help is the same text in a terminal and a pipe, and rich stays unloaded until a verb prints.
app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The console script `onedva`."""
    # a service's stop must clean up like Ctrl-C: an exit unwinds, the default would leave temporary files
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    app(prog_name="onedva")


def show_version(asked: bool) -> None:
    if asked:
        from onedva.commands.provenance import installed

        print(f"onedva {installed('onedva') or '(a source tree that is not installed)'}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """One-DVA: videos as an adaptive number of latents, and back by few-step diffusion."""


@app.command()
def encode(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A video file, or - for stdin.", show_default=False)],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="The .odva file to write, or - for stdout.", show_default=False)
    ],
    model: Model = "tiny",
    tokens: Tokens = "auto",
    quantiser: Quantiser = 0.125,
    keyframe_interval: KeyframeInterval = 8,
    low_latency: LowLatency = False,
    follow_camera: FollowCamera = True,
    raw: Annotated[
        str | None,
        typer.Option("--raw", metavar="WxH@FPS", help="IN is a pipe of bare RGB frames, as in 640x360@30000/1001."),
    ] = None,
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Decode IN in a process with limits: for files from strangers.")
    ] = False,
    batch: Batch = 1,
    backend: Backend = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = None,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Encode a video into latents.

    From a pipe it reads y4m, nut and what else of video files needs no going back; results go to stderr where packets
    go to stdout.
    """
    from onedva.commands.clip_streams import StreamChoice
    from onedva.commands.coding import CodecChoice, encode_file

    terminal = Terminal(quiet=quiet, as_json=json)
    choice = CodecChoice(model=model, backend=backend, dtype=dtype, device=device, threads=threads)
    stream = StreamChoice(
        tokens=tokens,
        keyframe_interval=keyframe_interval,
        low_latency=low_latency,
        follow_camera=follow_camera,
        batch=batch,
    )
    encode_file(
        source,
        target,
        choice=choice,
        stream=stream,
        step=quantiser,
        raw=raw,
        sandbox=sandbox,
        force=force,
        terminal=terminal,
    )


@app.command()
def decode(
    source: Annotated[Path, typer.Argument(metavar="IN", help="An .odva file, or - for stdin.", show_default=False)],
    target: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The video to write: .mp4, .mkv, …, or - for stdout.", show_default=False),
    ],
    model: Model = "tiny",
    steps: Steps = 1,
    seed: Seed = 0,
    audio: Annotated[
        Path | None, typer.Option("--audio", help="A file whose sound is copied as it is, such as the source.")
    ] = None,
    pipe: Annotated[
        str | None,
        typer.Option(
            "--pipe",
            help="What goes to stdout: y4m; nut, RGB with time stamps; raw, bare RGB; mp4.",
            show_default="y4m",
        ),
    ] = None,
    skip_damage: Annotated[
        bool,
        typer.Option("--skip-damage", help="Conceal damaged clips and tell of them (exit code 3), instead of failing."),
    ] = False,
    backend: Backend = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = None,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Decode latents to a video.

    It has the source's size, frame count, rate and time stamps.
    """
    from onedva.commands.coding import CodecChoice, decode_file

    terminal = Terminal(quiet=quiet, as_json=json)
    choice = CodecChoice(model=model, backend=backend, dtype=dtype, device=device, threads=threads)
    decode_file(
        source,
        target,
        choice=choice,
        steps=steps,
        seed=seed,
        audio=audio,
        pipe=pipe,
        skip_damage=skip_damage,
        force=force,
        terminal=terminal,
    )


@app.command()
def reconstruct(
    source: Source,
    target: Annotated[Path | None, typer.Argument(metavar="OUT", help="A video to write.", show_default=False)] = None,
    model: Model = "tiny",
    tokens: Tokens = "auto",
    quantiser: Quantiser = 0.125,
    keyframe_interval: KeyframeInterval = 8,
    low_latency: LowLatency = False,
    follow_camera: FollowCamera = True,
    steps: Steps = 1,
    seed: Seed = 0,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="A PNG to write: source | reconstruction | error.")
    ] = None,
    backend: Backend = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = None,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Encode and decode, and measure.

    PSNR and SSIM are taken in memory, before any video encoding.
    """
    from onedva.commands.clip_streams import StreamChoice
    from onedva.commands.coding import CodecChoice
    from onedva.commands.reconstruct import reconstruct_file

    terminal = Terminal(quiet=quiet, as_json=json)
    choice = CodecChoice(model=model, backend=backend, dtype=dtype, device=device, threads=threads)
    reconstruct_file(
        source,
        target,
        choice=choice,
        stream=StreamChoice(
            tokens=tokens,
            keyframe_interval=keyframe_interval,
            low_latency=low_latency,
            follow_camera=follow_camera,
        ),
        step=quantiser,
        steps=steps,
        seed=seed,
        picture=picture,
        force=force,
        terminal=terminal,
    )


@app.command()
def info(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="PATH", help="An .odva file, a video or a bundle folder.", show_default=False),
    ] = None,
    model: Model = "tiny",
    backend: Backend = "auto",
    dtype: Dtype = "auto",
    plot: Annotated[
        Path | None, typer.Option("--plot", help="A PNG to write: bits and latents of an .odva file over time.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Show what is installed, or what is in a file.

    Versions, backends found (and why not), the bundle, its self-test and its parity report. Of an .odva file: bits,
    rate, latents and kind of every clip, and what is damaged.
    """
    from onedva.commands.coding import CodecChoice
    from onedva.commands.info import show_install, show_path

    terminal = Terminal(quiet=True, as_json=json)
    if path is None and plot is not None:
        raise ValueError("--plot shows an .odva file, name one")
    if path is None:
        show_install(choice=CodecChoice(model=model, backend=backend, dtype=dtype), terminal=terminal)
    else:
        show_path(path, plot=plot, force=force, terminal=terminal)


@app.command()
def bench(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="IN", help="A video; its first clip is coded.", show_default="a made-up clip"),
    ] = None,
    suite: Annotated[
        str,
        typer.Option(
            "--suite",
            help="latency: lengths × steps × backends × sizes. stream: files in and out. cold: a fresh process up to "
            "its first clip. quality: every backend against PyTorch.",
        ),
    ] = "latency",
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--compare", metavar="A B", help="Measure nothing: print ratios of two bench.json.", show_default=False
        ),
    ] = None,
    model: Model = "tiny",
    lengths: Lengths = "0,16,64,256,full,auto",
    steps: Annotated[str, typer.Option("--steps", help="Step counts, by comma.")] = "0,1,2,4",
    size: Annotated[str, typer.Option("--size", help="WIDTHxHEIGHT of the clip, by comma.")] = "256x256",
    runs: Annotated[int, typer.Option("--runs", min=1, help="Timed runs per cell.")] = 50,
    warm_up: Annotated[int, typer.Option("--warm-up", min=0, help="Runs of a cell before the clock counts.")] = 5,
    time_box: Annotated[
        float, typer.Option("--time-box", min=0, help="Seconds after which a cell stops short of its runs.")
    ] = 5,
    seed: Seed = 0,
    backend: Backend = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder for bench.json, bench.md, bench.png.")
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure latency and PSNR over latent length and steps, or another suite.

    `--backend` takes several by comma, each with a dtype behind a colon: `onnxruntime,openvino:int8`.
    """
    from onedva.commands.bench import Plan, bench_codec
    from onedva.commands.coding import CodecChoice
    from onedva.commands.sweep import Timing

    terminal = Terminal(quiet=quiet, as_json=json)
    if compare is not None:
        from onedva.commands.bench_compare import compare_files

        compare_files(*compare, terminal=terminal)
        return
    choice = CodecChoice(model=model, backend=backend, dtype=dtype, device=device, threads=threads)
    timing = Timing(warm_up=warm_up, runs=runs, time_box=time_box)
    plan = Plan.parse(lengths=lengths, steps=steps, size=size, timing=timing, seed=seed)
    bench_codec(source, suite=suite, plan=plan, choice=choice, output=output, force=force, terminal=terminal)


@app.command()
def demo(
    video: Annotated[str, typer.Option("--video", help="A video to show.", show_default="a made-up clip")] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to fill.")] = Path("demo"),
    model: Model = "tiny",
    seed: Seed = 0,
    backend: Backend = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = None,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Show the codec on a short video.

    Leaves source and reconstruction as mp4, a side-by-side picture, a plot and a table in a folder.
    """
    from onedva.commands.coding import CodecChoice
    from onedva.commands.demo import run_demo

    terminal = Terminal(quiet=quiet, as_json=json)
    choice = CodecChoice(model=model, backend=backend, dtype=dtype, device=device, threads=threads)
    run_demo(Path(video) if video else None, output, choice=choice, seed=seed, force=force, terminal=terminal)


app.command()(train)
app.command()(export)
app.command()(engines)
app.command("eval")(evaluate)
app.command()(shard)
app.command()(thin)
app.command()(serve)
app.command()(ablate)
app.command()(scenes)
app.command()(tokenize)
app.command("train-ldm")(train_ldm)
app.command()(generate)

if __name__ == "__main__":
    main()
