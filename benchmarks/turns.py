"""Measures packages in turns, each in a process of its own.

In a shared process, memory that the first network freed makes the later ones faster.
Only one process works at a time and rounds are interleaved, so a busy moment of the
machine meets every side.
"""

import importlib
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

# Package -> module of its networks, options that make them comparable.
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "keras_lightnets": ("keras_lightnets", {"include_preprocessing": False}),
    "keras.applications": ("keras.applications", {}),
    "kimm": ("kimm.models", {"include_preprocessing": False}),
    # Our network of Keras' own layers: neither publisher above has grouped ones.
    "keras layers": ("keras_lightnets", {"include_preprocessing": False}),
}


def build(package: str, function: str, size: int) -> Any:
    """Return a network of a package with random weights, for 1000 classes.

    Args:
        package: Key of SOURCES.
        function: What the network is called there.
        size: Input side.
    """
    import keras

    module, options = SOURCES[package]
    model = getattr(importlib.import_module(module), function)(
        input_shape=(size, size, 3),
        weights=None,
        classifier_activation=None,
        **options,
    )
    if package == "keras layers":
        model = keras.models.clone_model(model, clone_function=_as_keras_has_it)
    return model


def _as_keras_has_it(layer: Any) -> Any:
    """Return the Keras layer that one of ours makes faster, others anew."""
    import keras

    kind = getattr(keras.layers, type(layer).__name__)
    return kind.from_config(layer.get_config())


def take_turns(
    prepare: Callable[..., Callable[[], Any]],
    functions: dict[str, str],
    arguments: tuple[Any, ...],
    rounds: int,
) -> dict[str, list[Any]]:
    """Measure a network of several packages.

    Args:
        prepare: (package, function, *arguments) -> function that measures one round.
            Runs in the package's process, so it must be importable.
        functions: Package -> what the network is called there.
        arguments: Further arguments.
        rounds: Rounds.

    Returns:
        Package -> what its rounds returned.

    Raises:
        EOFError: If one of the processes ends; it prints why.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for package, function in functions.items():
        pipes[package], theirs = context.Pipe()
        given = (theirs, prepare, package, function, *arguments)
        processes.append(context.Process(target=_serve, args=given, daemon=True))
        processes[-1].start()
        theirs.close()  # only then does the end of the process end the pipe
        pipes[package].recv()
    found: dict[str, list[Any]] = {package: [] for package in functions}
    for _ in range(rounds):
        for package, pipe in pipes.items():
            pipe.send(True)
            found[package].append(pipe.recv())
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()
    return found


def _serve(pipe: Connection, prepare: Callable[..., Any], *arguments: Any) -> None:
    """Say when it is ready, then measure one round for every True that arrives."""
    measure = prepare(*arguments)
    pipe.send(None)
    while pipe.recv():
        pipe.send(measure())
