"""The plain graph between a Keras 3 model and everything that is made of it.

A graph is a list of steps in order of execution; each step becomes exactly one
layer and, later, at most one operation of a TFLite file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np


@dataclasses.dataclass
class Step:
    """One operation.

    Attributes:
        name: Unique name, and the name of its output.
        kind: Key of the layer table in `_layers`.
        inputs: Names of the tensors read, in order.
        config: What the layer of this kind is built with.
        weights: Arrays by role ("kernel", "gamma"), in the layer's own order.
        source: Name of the Keras 3 layer that owns the weights, or None.
        roles: Attributes of that layer that hold the weights, in the same order.
        shared: Name of the step whose layer is used again, or None.
        shape: Shape of the output, batch first.
        range: Lowest and highest value of the output in int8, where they are known.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    source: str | None = None
    roles: tuple[str, ...] = ()
    shared: str | None = None
    shape: tuple[int | None, ...] = ()
    range: tuple[float, float] | None = None


@dataclasses.dataclass
class Graph:
    """A model as steps.

    Attributes:
        name: Name of the model.
        inputs: Shape of each input by name, batch first.
        steps: Steps by name, in order of execution.
        outputs: Name of the tensor behind each output, in order.
        structure: "dict", "list" or "tensor": what calling the model returns.
        raw_zero_point: Grey level that stands for a real 0 of the input, once the
            normalisation was folded into the input's range; None before.
        raw_scale: Real value of one grey level, once folded.
    """

    name: str
    inputs: dict[str, tuple[int | None, ...]]
    steps: dict[str, Step]
    outputs: dict[str, str]
    structure: str
    raw_zero_point: int | None = None
    raw_scale: float = 1.0

    def copy(self) -> Graph:
        """Return a copy whose steps can be changed; arrays are shared."""
        steps = {
            name: dataclasses.replace(
                step, config=dict(step.config), weights=dict(step.weights)
            )
            for name, step in self.steps.items()
        }
        return dataclasses.replace(
            self, inputs=dict(self.inputs), steps=steps, outputs=dict(self.outputs)
        )

    def consumers(self) -> dict[str, list[str]]:
        """Return who reads each tensor; a model output reads as "output:NAME"."""
        readers: dict[str, list[str]] = {
            name: [] for name in (*self.inputs, *self.steps)
        }
        for step in self.steps.values():
            for name in step.inputs:
                readers[name].append(step.name)
        for key, name in self.outputs.items():
            readers[name].append(f"output:{key}")
        return readers

    def sole_consumer(self, name: str, readers: dict[str, list[str]]) -> Step | None:
        """Return the one step that reads a tensor, or None."""
        found = readers[name]
        return self.steps.get(found[0]) if len(found) == 1 else None

    def shared_steps(self) -> set[str]:
        """Return the steps whose layer is used more than once."""
        again = [step for step in self.steps.values() if step.shared]
        return {step.name for step in again} | {str(step.shared) for step in again}

    def remove(self, name: str) -> None:
        """Take out a step with one input; its readers read that input."""
        step = self.steps.pop(name)
        (source,) = step.inputs
        for other in self.steps.values():
            other.inputs = tuple(source if i == name else i for i in other.inputs)
        self.outputs = {
            key: source if value == name else value
            for key, value in self.outputs.items()
        }

    def has_ranges(self) -> bool:
        """Return whether int8 training has given tensors their ranges."""
        return any(step.range is not None for step in self)

    def path_to(self, name: str) -> list[str]:
        """Return tensor names from an input to `name`, along first inputs."""
        path = [name]
        while path[-1] in self.steps and self.steps[path[-1]].inputs:
            path.append(self.steps[path[-1]].inputs[0])
        return path[::-1]

    def __iter__(self) -> Iterator[Step]:
        """Iterate over the steps in order of execution."""
        return iter(self.steps.values())
