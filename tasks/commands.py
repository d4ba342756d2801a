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
from rich.text import Text

from keras_lightnets._errors import unknown
from keras_lightnets.tasks.config import (
    ConfigError,
    Options,
    read_json_object,
    split_commas,
)
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
    words: tuple[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
    shown: Callable[[Mapping[str, Any]], None] | None = None,
) -> Callable[..., None]:
    """Make a typer command whose flags are the fields of an option class.

    Added to them: `--config FILE.json` (options, below the flags) and `--json`
    (one result object on stdout). A field of type `list[str]` is positional, a flag
    of a tuple may come more than once or hold commas.

    Args:
        options: The option class.
        call: Does the work; receives the options and the switches.
        switches: Further flags without a value -> help text.
        base: Called with flags and switches; returns options below all others,
            such as those of a run that is resumed.
        words: Field that the first positional word fills, and the tuple that takes
            the others: those behind the first of `--format onnx edgetpu`.
        flags: Field -> flag, where it is not the field's name.
        shown: Prints the result, see `finish`.

    Returns:
        The function to hand to typer.
    """
    extra = dict(switches or {})

    def verb(**values: Any) -> None:
        as_json, file = values.pop("json"), values.pop("config")
        chosen = {name: bool(values.pop(name)) for name in extra}
        if words is not None:
            one, rest = words
            values[one], *more = values.pop("words")
            values[rest] = [*(values[rest] or ()), *more]
        with_values = {k: v for k, v in values.items() if v not in (None, [])}

        def work() -> dict[str, Any]:
            given = {k: _value(options, k, v) for k, v in with_values.items()}
            below = base({**given, **chosen}) if base else {}
            if file is not None:
                below = {**below, **_from_file(options, file)}
            return call(options.parse({**below, **given}), **chosen)

        finish(work, as_json, shown)

    verb.__name__ = call.__name__
    verb.__doc__ = (call.__doc__ or "").split("\n\n")[0]
    parameters = [
        *_of_fields(options, words[0] if words else None, flags or {}),
        *(_switch(name, text) for name, text in extra.items()),
        *_ours(),
    ]
    setattr(verb, "__signature__", inspect.Signature(parameters))  # noqa: B010
    verb.__annotations__ = {p.name: p.annotation for p in parameters}
    return verb


def _of_fields(
    options: type[Options], word: str | None, flags: Mapping[str, str]
) -> list[inspect.Parameter]:
    """Return a parameter per field; in place of `word`'s, first, one for all words."""
    found = [
        _parameter(name, field, flags.get(name, _flag(name)))
        for name, field in _fields(options)
        if name != word
    ]
    if word is None:
        return found
    text = options.model_fields[word].description
    argument = typer.Argument(metavar=word.upper(), help=text)
    return [_keyword("words", Annotated[list[str], argument]), *found]


def _ours() -> list[inspect.Parameter]:
    """Return the parameters that every command has."""
    file = Annotated[Path | None, typer.Option(help="JSON file with options.")]
    return [
        _keyword("config", file, None),
        _switch("json", "Print one JSON object on stdout."),
    ]


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
        table.add_row(Text(name), Text(text))
    print_table(table)


def print_table(table: Table) -> None:
    """Print a table so that no figure is cut off, whatever the terminal.

    Args:
        table: Where it does not fit, columns that may wrap break between words; a
            terminal that is narrower still breaks the lines.
    """
    console = Console()
    free = console.options.update(width=1000)
    if console.measure(table, options=free).maximum > console.width:
        for column in table.columns:
            if not column.no_wrap:
                cells = (column.header, *column.cells)
                words = [console.measure(cell, options=free).minimum for cell in cells]
                column.width = max(words)
    whole = console.measure(table, options=free).maximum
    Console(width=max(console.width, whole)).print(table)


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


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _keyword(
    name: str, annotation: Any, default: Any = inspect.Parameter.empty
) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _switch(name: str, text: str) -> inspect.Parameter:
    return _keyword(name, Annotated[bool, typer.Option(_flag(name), help=text)], False)


def _parameter(name: str, field: Any, flag: str) -> inspect.Parameter:
    text = field.description or ""
    if get_origin(field.annotation) is list:
        hint: Any = Annotated[list[str], typer.Argument(help=text)]
        return _keyword(name, hint)
    if field.annotation is bool:
        both = f"{flag}/--no-{flag.removeprefix('--')}"
        hint = Annotated[bool | None, typer.Option(both, help=_help(text, field))]
        return _keyword(name, hint, None)
    option = typer.Option(flag, help=_help(text, field), metavar=_metavar(field))
    kind = list[str] if get_origin(field.annotation) is tuple else str
    return _keyword(name, Annotated[kind | None, option], None)


def _help(text: str, field: Any) -> str:
    default = field.get_default(call_default_factory=True)
    shown = ", ".join(map(str, default)) if isinstance(default, tuple) else default
    shown = NONE if default is None else shown
    return text if field.is_required() else f"{text} Default: {shown}."


def _metavar(field: Any) -> str:
    kinds = get_args(field.annotation) or (field.annotation,)
    if all(isinstance(kind, str) for kind in kinds):
        return "|".join(kinds)
    names = {int: "INT", float: "FLOAT", dict: "JSON"}
    return names.get(get_origin(kinds[0]) or kinds[0], "TEXT")


def _value(options: type[Options], name: str, value: Any) -> Any:
    """Turn a flag's text into what the option class reads."""
    annotation = options.model_fields[name].annotation
    if get_origin(annotation) is tuple:
        return tuple(part for text in value for part in split_commas(text))
    if isinstance(value, str) and value.lower() == NONE:
        if type(None) in get_args(annotation):
            return None
    if get_origin(annotation) is dict and isinstance(value, str):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{_flag(name)} must be a JSON object such as '{{\"width\": 0.5}}'. "
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
