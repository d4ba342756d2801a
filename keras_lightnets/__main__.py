"""Command line: `keras-lightnets list | info | train | eval | predict | export ...`.

This is the one place that joins tasks and tools. Everything heavy is imported by
the command that needs it, so `list` answers without loading keras.
"""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from keras_lightnets.tasks import task_names

# `--help` behind a task's name is the task's.
PASS_ON = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}

app = typer.Typer(
    name="keras-lightnets",
    help="Light-weight Keras 3 networks: list, train, quantise, export, verify.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("list")
def list_command(
    pattern: Annotated[str, typer.Argument(help="Shell pattern, such as 'ghost*'.")] = (
        "*"
    ),
    weights: Annotated[
        bool, typer.Option("--weights", help="Only networks with published weights.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List networks with their published size, accuracy and weights."""
    from keras_lightnets._registry import get_spec, list_models

    specs = [get_spec(name) for name in list_models(pattern, weights=weights)]
    if as_json:
        _emit([{"name": s.name, "weights": [w.tag for w in s.weights]} for s in specs])
        return
    rows = [
        (
            spec.name,
            spec.function,
            str(spec.default_size),
            f"{spec.top1:.1f}" if spec.top1 else "",
            ", ".join(w.tag for w in spec.weights) or "none published",
        )
        for spec in specs
    ]
    _table(("name", "function", "size", "top-1", "weights (default first)"), rows)


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="Registry name; see `list`.")],
    size: Annotated[int, typer.Option(help="Input side; 0: the published one.")] = 0,
    layers: Annotated[bool, typer.Option("--layers", help="One row a layer.")] = False,
    as_json: Json = False,
) -> None:
    """Show a network's cost, endpoints, and where its weights come from."""
    from keras_lightnets._registry import get_spec

    spec = get_spec(name)
    _load_keras()
    from keras_lightnets import cost, create_model

    side = size or spec.default_size
    model = create_model(spec.name, weights=None, input_shape=(side, side, 3))
    rows, whole = cost.costs(model), cost.total(model)
    facts = _facts(spec, side, whole)
    if as_json:
        if layers:
            facts["layers"] = [vars(row) for row in rows]
        _emit(facts)
        return
    if layers:
        header = ("layer", "kind", "output", "params", "multiply-adds", "bytes")
        _table(
            header,
            [
                (
                    r.name,
                    r.kind,
                    "x".join(str(s) for s in r.shape),
                    f"{r.params:,}",
                    f"{r.madds:,}",
                    f"{r.activation_bytes:,}",
                )
                for r in rows
            ],
        )
    plain = {k: v for k, v in facts.items() if k != "weights" and v not in ("", None)}
    _table(("", ""), [(k.replace("_", " "), _words(v)) for k, v in plain.items()])
    for entry in facts["weights"]:
        typer.echo(
            f"weights {entry['tag']}: {entry['source']}, licence {entry['licence']}, "
            f"top-1 {entry['top1']}\n  {entry['url']} {entry['hash']}"
        )
    if not facts["weights"]:
        typer.echo("weights: none published")


def _facts(spec: Any, side: int, whole: Any) -> dict[str, Any]:
    return {
        "name": spec.name,
        "function": spec.function,
        "input": [side, side, 3],
        "params": whole.params,
        "madds": whole.madds,
        "largest_activation_bytes": whole.activation_bytes,
        "top1": spec.top1,
        "endpoints": {level.name: level.stride for level in spec.levels},
        "output_strides": list(spec.output_strides),
        "dynamic_size": spec.dynamic_size,
        "int8_ok": spec.int8_ok,
        "reason": spec.flags_reason,
        "reference": spec.reference,
        "weights": [
            {
                "tag": w.tag,
                "source": w.source,
                "licence": w.licence,
                "top1": w.top1,
                "url": w.url,
                "hash": w.hash,
            }
            for w in spec.weights
        ],
    }


def _task_command(verb: str) -> None:
    def command(context: typer.Context, task: str) -> None:
        from keras_lightnets._errors import unknown

        if task == "--help":
            typer.echo(context.get_help())
            return
        if task not in task_names():
            raise unknown("task", task, task_names())
        if "--help" not in context.args:
            _load_keras()
        module = importlib.import_module(f"keras_lightnets.tasks.{task}")
        module.main([verb, *context.args])

    command.__doc__ = (
        f"Run `{verb}` of a task ({', '.join(task_names())}); "
        f"`{verb} TASK --help` lists its options."
    )
    app.command(verb, context_settings=PASS_ON)(command)


for _verb in ("train", "eval", "predict"):
    _task_command(_verb)


@app.command(context_settings=PASS_ON)
def export(context: typer.Context) -> None:
    """Quantise and export a run; every file is run, compared, timed and measured."""
    from keras_lightnets import _deploy

    if "--help" not in context.args:
        _load_keras()
    _deploy.main(context.args)


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="Folder of the run and the report.")] = (
        "runs/demo"
    ),
    as_json: Json = False,
) -> None:
    """Draw a data set, train, quantise, export, verify; minutes on two cores."""
    _load_keras()
    from keras_lightnets._demo import run_demo
    from keras_lightnets.tasks.commands import finish

    finish(lambda: run_demo(Path(out)), as_json)


@app.command()
def bench(
    names: Annotated[
        list[str], typer.Argument(help="Registry names, or patterns: 'ghost*'.")
    ],
    size: Annotated[int, typer.Option(help="Input side; 0: the published ones.")] = 0,
    threads: Annotated[
        list[int] | None, typer.Option(help="Numbers of threads: --threads 1 2.")
    ] = None,
    runs: Annotated[int, typer.Option(help="Timed runs of every file.")] = 30,
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures for the int8 ranges.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of table and plot.")] = Path(
        "bench"
    ),
    ops: Annotated[
        bool, typer.Option("--ops", help="Only what each kind of operation takes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Time networks through LiteRT in turns; table, CSV and Pareto plot."""
    _load_keras()
    from keras_lightnets.tasks.commands import print_table
    from keras_lightnets.tools import bench as benching

    counts = [*(threads or ()), *(int(name) for name in names if name.isdigit())]
    networks = [name for name in names if not name.isdigit()]
    if ops:
        _bench_ops(networks, size, counts or [1], runs, images, as_json)
        return
    rows = benching.bench(
        networks,
        size=size,
        threads=counts or (1, 2),
        runs=runs,
        calibration=benching.read_pictures(images, size) if images else None,
        say=lambda text: typer.echo(text, err=True),
    )
    files = [str(path) for path in benching.write(rows, out)]
    if as_json:
        _emit({"rows": [vars(row) for row in rows], "files": files})
        return
    print_table(benching.table(rows))
    typer.echo("\n".join(files))


def _bench_ops(
    names: list[str],
    size: int,
    threads: list[int],
    runs: int,
    images: Path | None,
    as_json: bool,
) -> None:
    """Show the operations of each network's files by kind."""
    from keras_lightnets.tasks.commands import print_table
    from keras_lightnets.tools import bench as benching
    from keras_lightnets.tools import op_profile

    pictures = benching.read_pictures(images, size) if images else None
    rows = []
    for count in threads:
        found = op_profile.profile_networks(
            names, size=size, threads=count, runs=runs, calibration=pictures
        )
        for (name, kind), ops in found.items():
            title = f"{name}, {kind}, threads: {count}"
            if not as_json:
                print_table(op_profile.table(title, ops))
            rows.append(
                {"name": name, "kind": kind, "threads": count}
                | {"ops": [vars(op) for op in ops]}
            )
    if as_json:
        _emit({"rows": rows})


@app.command()
def edgetpu(
    file: Annotated[Path, typer.Argument(help="An uncompiled int8 .tflite file.")],
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit code 1 if any op is left on the CPU."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Predict op by op what the Edge TPU compiler maps, and say what to change."""
    from keras_lightnets.tools.export.edgetpu import verdict

    found = verdict(file)
    if as_json:
        _emit(found.json())
    else:
        typer.echo(found.table())
    if strict and not found.all_mapped:
        raise typer.Exit(1)


@app.command()
def fuse(
    file: Annotated[Path, typer.Argument(help="A .keras file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The fused .keras file.")],
    branches: Annotated[
        bool,
        typer.Option("--branches", help="Only merge branches, as authors publish."),
    ] = False,
    residuals: Annotated[
        bool,
        typer.Option("--residuals", help="Merge residual connections too (RMNet)."),
    ] = False,
    rounds: Annotated[int, typer.Option(help="Timed runs; 0: none.")] = 20,
    as_json: Json = False,
) -> None:
    """Fold normalisations and merge parallel branches of a trained model."""
    _load_keras()
    from keras_lightnets.tools.fuse.report import fuse_file

    found = fuse_file(file, out, norms=not branches, residuals=residuals, rounds=rounds)
    if as_json:
        _emit(found.json())
    else:
        typer.echo(found.text())


def _load_keras() -> None:
    """Import keras without the lines that TensorFlow's libraries write to stderr.

    They come from C++ before its log level counts; Python errors still show.
    """
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        importlib.import_module("keras")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _emit(result: Any) -> None:
    """Write one JSON document to stdout."""
    typer.echo(json.dumps(result, indent=1, ensure_ascii=False))


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} /{v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    return f"{value:,}" if type(value) is int else str(value)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print columns as wide as their longest entry, whatever the terminal."""
    lines = [row for row in [header, *rows] if any(row)]
    widths = [max(len(row[i]) for row in lines) for i in range(len(header))]
    for row in lines:
        cells = (cell.ljust(w) for cell, w in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def main() -> None:
    """Run the command line; an error of the user's is one line and exit code 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("KERAS_LIGHTNETS_TRACEBACK"):
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
