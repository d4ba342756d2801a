"""Runs MXNet's symbol files in torch, as reference networks for make_parity.

MXNet itself installs on no current Python. A symbol file is the whole graph as
JSON: operators by name, their options, and the numbers of the nodes they read.
"""

import ast
import json
from collections.abc import Callable, Sequence
from typing import Any

SIDE = 64


def network(text: str) -> Any:
    """Return a torch module that computes a symbol file's graph up to its logits.

    Args:
        text: The file's content.

    Returns:
        The module, in evaluation mode, for images of any size. Every operator is a
        submodule with the name it has in the file; weights are random.

    Raises:
        KeyError: If the file has an operator that is not known here.
    """
    import torch

    nodes = [node for node in json.loads(text)["nodes"]]

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for node in nodes:
                if node["op"] not in ("null", "SoftmaxOutput"):
                    self.add_module(node["name"], _operator(node))

        def forward(self, x: Any) -> Any:
            outputs: list[Any] = []
            for node in nodes:
                if node["op"] == "SoftmaxOutput":
                    return outputs[node["inputs"][0][0]]
                read = [outputs[entry[0]] for entry in node["inputs"]]
                read = [value for value in read if value is not None]
                if node["op"] == "null":
                    # Weights are in the submodules.
                    outputs.append(x if node["name"] == "data" else None)
                else:
                    outputs.append(getattr(self, node["name"])(*read))
            return outputs[-1]

    model = Net().eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, SIDE, SIDE))  # gives every weight its shape
    return model


def _operator(node: dict[str, Any]) -> Any:
    # The key has changed twice between versions of MXNet.
    options = node.get("param") or node.get("attr") or node.get("attrs") or {}
    return _OPERATORS[node["op"]](options)


def _pair(options: dict[str, str], key: str, default: int) -> tuple[int, ...]:
    return tuple(ast.literal_eval(options.get(key, f"({default}, {default})")))


def _convolution(options: dict[str, str]) -> Any:
    from torch import nn

    return nn.LazyConv2d(
        int(options["num_filter"]),
        _pair(options, "kernel", 1),
        _pair(options, "stride", 1),
        _pair(options, "pad", 0),
        _pair(options, "dilate", 1),
        groups=int(options.get("num_group", 1)),
        bias=options.get("no_bias") != "True",
    )


def _batch_norm(options: dict[str, str]) -> Any:
    from torch import nn

    if options.get("fix_gamma", "True") != "False":
        raise ValueError("BatchNorm with fix_gamma=True has no learnt scale")
    return nn.LazyBatchNorm2d(eps=float(options.get("eps", "1e-3")))


def _dense(options: dict[str, str]) -> Any:
    from torch import nn

    return nn.LazyLinear(
        int(options["num_hidden"]), bias=options.get("no_bias") != "True"
    )


def _pooling(options: dict[str, str]) -> Any:
    """Pool; a mean over 7x7 cells is one over the whole map at the usual size."""
    from torch import nn

    if options["pool_type"] == "avg":
        return nn.AdaptiveAvgPool2d(1)
    return nn.MaxPool2d(
        _pair(options, "kernel", 1),
        _pair(options, "stride", 1),
        _pair(options, "pad", 0),
        ceil_mode=options.get("pooling_convention", "valid") == "full",
    )


def _function(call: Callable[..., Any]) -> Any:
    from torch import nn

    class Function(nn.Module):
        def forward(self, *inputs: Any) -> Any:
            return call(*inputs)

    return Function()


def _reorder(options: dict[str, str]) -> Any:
    """Interleave the channels of the branches (the IGC authors' own operator)."""
    branches = int(options["branch_factor"])

    def call(x: Any) -> Any:
        count, channels, *sides = x.shape
        x = x.reshape(count, branches, channels // branches, *sides)
        return x.transpose(1, 2).reshape(count, channels, *sides)

    return _function(call)


def _reshape(options: dict[str, str]) -> Any:
    codes = ast.literal_eval(options["shape"])
    return _function(lambda x: x.reshape(reshaped(tuple(x.shape), codes)))


def reshaped(shape: Sequence[int], codes: Sequence[int]) -> list[int]:
    """Return the shape that MXNet's Reshape makes.

    Args:
        shape: The input's.
        codes: 0 keeps an axis, -2 keeps all that are left, -3 joins two, -4 splits
            one into the two that follow (one of them may be -1), -1 is what is
            left, and others are sizes.

    Returns:
        The output's.

    Example:
        >>> reshaped((2, 6, 5, 7), (0, -4, 2, -1, -2))
        [2, 2, 3, 5, 7]
    """
    left, todo, found = list(shape), list(codes), []
    while todo:
        code = todo.pop(0)
        if code == -2:
            found += left
            left = []
        elif code == -3:
            found.append(left.pop(0) * left.pop(0))
        elif code == -4:
            whole, first, second = left.pop(0), todo.pop(0), todo.pop(0)
            first = whole // second if first == -1 else first
            found += [first, whole // first]
        else:
            kept = left.pop(0) if left else 0
            found.append(kept if code == 0 else code)
    return found


def _swap_axes(options: dict[str, str]) -> Any:
    first, second = int(options["dim1"]), int(options["dim2"])
    return _function(lambda x: x.transpose(first, second))


def _clip(options: dict[str, str]) -> Any:
    least, most = float(options["a_min"]), float(options["a_max"])
    return _function(lambda x: x.clamp(least, most))


def _activation(options: dict[str, str]) -> Any:
    from torch import nn

    return {"relu": nn.ReLU}[options["act_type"]]()


def _add(_: dict[str, str]) -> Any:
    return _function(lambda a, b: a + b)


def _flatten(_: dict[str, str]) -> Any:
    return _function(lambda x: x.flatten(1))


_OPERATORS: dict[str, Callable[[dict[str, str]], Any]] = {
    "Activation": _activation,
    "BatchNorm": _batch_norm,
    "Convolution": _convolution,
    "Flatten": _flatten,
    "FullyConnected": _dense,
    "Pooling": _pooling,
    "Reorder": _reorder,
    "Reshape": _reshape,
    "SwapAxis": _swap_axes,
    "_Plus": _add,
    "clip": _clip,
    "elemwise_add": _add,
}
