"""Command-line verbs made from option classes: one flag per field."""

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from rich.console import Console
from rich.table import Table

from keras_lightnets._errors import unknown
from keras_lightnets.tasks.config import ConfigError, Options, read_json_object
from keras_lightnets.tasks.run import TrainingError

# What a user can cause; anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, TrainingError)
NONE = "none"


def command(
    options: type[Options],
    call: Callable[..., dict[str, Any]],
    *,
    switches: Mapping[str, str] | None = None,
    base: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Callable[..., None]:
    """Make a typer command whose flags are the fields of an option class.

    Added to them: `--config FILE.json` (options, below the flags) and `--json`
    (one result object on stdout). A field of type `list[str]` is positional.

    Args:
        options: The option class.
        call: Does the work; receives the options and the switches.
        switches: Further flags without a value -> help text.
        base: Called with flags and switches; returns options below all others,
            such as those of a run that is resumed.

    Returns:
        The function to hand to typer.
    """
    extra = dict(switches or {})

    def verb(**values: Any) -> None:
        as_json = values.pop("json")
        file = values.pop("config")
        chosen = {name: bool(values.pop(name)) for name in extra}
        with_values = {k: v for k, v in values.items() if v not in (None, [])}

        def work() -> dict[str, Any]:
            given = {k: _value(options, k, v) for k, v in with_values.items()}
            below = base({**given, **chosen}) if base else {}
            if file is not None:
                below = {**below, **_from_file(options, file)}
            return call(options.parse({**below, **given}), **chosen)

        finish(work, as_json)

    verb.__name__ = call.__name__
    verb.__doc__ = (call.__doc__ or "").split("\n\n")[0]
    parameters = [_parameter(name, field) for name, field in _fields(options)]
    parameters += [_switch(name, text) for name, text in extra.items()]
    parameters += [
        _keyword(
            "config",
            Annotated[Path | None, typer.Option(help="JSON file with options.")],
            None,
        ),
        _switch("json", "Print one JSON object on stdout."),
    ]
    setattr(verb, "__signature__", inspect.Signature(parameters))  # noqa: B010
    verb.__annotations__ = {p.name: p.annotation for p in parameters}
    return verb


def finish(
    work: Callable[[], dict[str, Any]],
    as_json: bool,
    shown: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Run a verb and show its result or its error.

    Args:
        work: Returns the result as JSON values.
        as_json: Print one JSON object on stdout, also for an error, in place of a
            table.
        shown: Prints the result in place of the table of its plain values.

    Raises:
        typer.Exit: With code 2 after an error that the user can mend.
    """
    try:
        result = work()
    except USER_ERRORS as error:
        Console(stderr=True).print(f"Error: {error}", style="red", markup=False)
        if as_json:
            kind = type(error).__name__
            sys.stdout.write(json.dumps({"error": str(error), "type": kind}) + "\n")
        raise typer.Exit(2) from error
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        (shown or show)(result)


def show(result: Mapping[str, Any]) -> None:
    """Print the plain values of a result as a table, nested ones by dotted name."""
    table = Table(show_header=False)
    for name, value in _flat("", result):
        text = f"{value:.4f}" if isinstance(value, float) else str(value)
        table.add_row(name, text)
    Console().print(table)


def _flat(prefix: str, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(f"{prefix}{name}.", value)
        elif not isinstance(value, list):
            rows.append((f"{prefix}{name}", value))
    return rows


def _fields(options: type[Options]) -> list[tuple[str, Any]]:
    return list(options.model_fields.items())


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _switch(name: str, text: str) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    return _keyword(name, Annotated[bool, typer.Option(flag, help=text)], False)


def _parameter(name: str, field: Any) -> inspect.Parameter:
    text = field.description or ""
    flag = f"--{name.replace('_', '-')}"
    if get_origin(field.annotation) is list:
        hint: Any = Annotated[list[str], typer.Argument(help=text)]
        return _keyword(name, hint, inspect.Parameter.empty)
    if field.annotation is bool:
        both = f"{flag}/--no-{name.replace('_', '-')}"
        hint = Annotated[bool | None, typer.Option(both, help=_help(text, field))]
        return _keyword(name, hint, None)
    option = typer.Option(flag, help=_help(text, field), metavar=_metavar(field))
    return _keyword(name, Annotated[str | None, option], None)


def _help(text: str, field: Any) -> str:
    default = field.get_default(call_default_factory=True)
    shown = NONE if default is None else default
    return text if field.is_required() else f"{text} [{shown}]"


def _metavar(field: Any) -> str:
    kinds = get_args(field.annotation) or (field.annotation,)
    if all(isinstance(kind, str) for kind in kinds):
        return "|".join(kinds)
    names = {int: "INT", float: "FLOAT", dict: "JSON"}
    return names.get(get_origin(kinds[0]) or kinds[0], "TEXT")


def _value(options: type[Options], name: str, value: Any) -> Any:
    """Turn a flag's text into what the option class reads."""
    annotation = options.model_fields[name].annotation
    if isinstance(value, str) and value.lower() == NONE:
        if type(None) in get_args(annotation):
            return None
    if get_origin(annotation) is dict and isinstance(value, str):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{flag} must be a JSON object such as '{{\"width\": 0.5}}'. "
                f"Received: {value!r} ({error.msg} at column {error.colno})."
            ) from error
    return value


def _from_file(options: type[Options], path: Path) -> dict[str, Any]:
    values = read_json_object(path)
    for key in values:
        if key not in options.model_fields:
            text = unknown(f"option in {path}", key, options.model_fields)
            raise ConfigError(str(text))
    return values
