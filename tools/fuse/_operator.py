"""The algebra of convolutions: one after the other, and side by side.

Everything that fuses is one operator: zeros are padded, a kernel slides with a
stride, a bias is added. A normalisation is a 1x1 kernel per channel, average
pooling a constant one, padding an identity that pads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]
Size = tuple[int | None, int | None]

NO_PADS: Pads = ((0, 0), (0, 0))


class InexactError(ValueError):
    """Two operators are not one convolution; the text says why."""


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """A convolution.

    Attributes:
        kernel: (height, width, input channels / groups, output channels), float64.
        bias: (output channels), float64.
        groups: Channel groups.
        strides: Vertical and horizontal.
        dilation: Vertical and horizontal.
        pads: Zeros in front and behind, vertically and horizontally. None: as
            padding "same" does, for an input whose size is not known.
    """

    kernel: np.ndarray
    bias: np.ndarray
    groups: int = 1
    strides: Pair = (1, 1)
    dilation: Pair = (1, 1)
    pads: Pads | None = NO_PADS

    @property
    def inputs(self) -> int:
        """Input channels."""
        return int(self.kernel.shape[2]) * self.groups

    @property
    def outputs(self) -> int:
        """Output channels."""
        return int(self.kernel.shape[3])

    @property
    def size(self) -> Pair:
        """Height and width of the kernel."""
        return int(self.kernel.shape[0]), int(self.kernel.shape[1])

    @property
    def pointwise(self) -> bool:
        """Whether each output sees one input pixel, its own."""
        return self.size == (1, 1) and self.strides == (1, 1)

    @property
    def scale(self) -> bool:
        """Whether it only scales and shifts channels."""
        alone = self.groups == self.inputs == self.outputs
        return self.pointwise and alone and self.pads == NO_PADS


def identity(channels: int, pads: Pads = NO_PADS) -> Operator:
    """Return the operator that copies, behind `pads` zeros."""
    return Operator(
        np.ones((1, 1, 1, channels)), np.zeros(channels), channels, pads=pads
    )


def affine(gain: np.ndarray, shift: np.ndarray) -> Operator:
    """Return the operator that multiplies each channel, then adds."""
    return Operator(gain.reshape(1, 1, 1, -1), shift.reshape(-1), gain.size)


def choice(kernel: np.ndarray) -> Operator:
    """Return the operator that takes channels as (input, output) ones say."""
    return Operator(kernel[None, None], np.zeros(kernel.shape[1]))


def mean(size: Pair, strides: Pair, channels: int) -> Operator:
    """Return the operator that averages windows that lie inside the input."""
    kernel = np.full((*size, 1, channels), 1.0 / math.prod(size))
    return Operator(kernel, np.zeros(channels), channels, strides)


def same_pads(size: Size, kernel: Pair, strides: Pair, dilation: Pair) -> Pads | None:
    """Return the zeros that padding "same" adds.

    Args:
        size: Height and width of the input; None where not known.
        kernel: Height and width of the kernel.
        strides: Vertical and horizontal.
        dilation: Vertical and horizontal.

    Returns:
        Zeros in front and behind, or None where they depend on an unknown size.
    """
    pads: list[Pair] = []
    for n, k, s, d in zip(size, kernel, strides, dilation, strict=True):
        reach = (k - 1) * d
        if s > 1 and reach:
            if n is None:
                return None
            reach = max((math.ceil(n / s) - 1) * s + reach + 1 - n, 0)
        pads.append((reach // 2, reach - reach // 2))
    return pads[0], pads[1]


def compose(first: Operator, second: Operator) -> Operator:
    """Return the operator that does both, one after the other.

    Args:
        first: Applied to the input.
        second: Applied to what `first` returns.

    Returns:
        One operator, exact at the border too.

    Raises:
        InexactError: If no single convolution does that.
    """
    pads = _joint_pads(first, second)
    if second.scale:
        gain = second.kernel.reshape(-1)
        bias = first.bias * gain + second.bias
        return dataclasses.replace(first, kernel=first.kernel * gain, bias=bias)
    if first.pointwise and first.groups == first.inputs == first.outputs:
        rows = first.kernel.reshape(second.groups, -1).T
        kernel = _blocks(second) * rows[None, None, :, :, None]
        bias = second.bias + _response(second, first.bias)
        kernel = kernel.reshape(second.kernel.shape)
        return dataclasses.replace(second, kernel=kernel, bias=bias, pads=pads)
    taps = [_taps(first, second, axis) for axis in (0, 1)]
    groups = math.gcd(first.groups, second.groups)
    left, right = (_blocks(regroup(o, groups)) for o in (first, second))
    # (kernel, kernel, group, in, mid) times (group, mid, out), tap by tap.
    left, right = left.transpose(0, 1, 3, 2, 4), right.transpose(0, 1, 3, 2, 4)
    kernel = np.zeros((taps[0][0], taps[1][0], groups, left.shape[3], right.shape[4]))
    for i, row in enumerate(right):
        for j, tap in enumerate(row):
            places = [
                [(u * axis[2] + v * axis[3]) for u in range(count)]
                for axis, v, count in zip(taps, (i, j), first.size, strict=True)
            ]
            kernel[np.ix_(*places)] += left @ tap
    shape = (*kernel.shape[:2], first.inputs // groups, second.outputs)
    return Operator(
        kernel.transpose(0, 1, 3, 2, 4).reshape(shape),
        second.bias + _response(second, first.bias),
        groups,
        (
            first.strides[0] * second.strides[0],
            first.strides[1] * second.strides[1],
        ),
        (taps[0][1], taps[1][1]),
        pads,
    )


def composed_size(first: Operator, second: Operator) -> int:
    """Return the size of the kernel of `compose`, without computing it.

    Args:
        first: Applied to the input.
        second: Applied to what `first` returns.

    Returns:
        Number of values.

    Raises:
        InexactError: If no single convolution does both.
    """
    groups = math.gcd(first.groups, second.groups)
    if first.scale or second.scale:
        groups = (second if first.scale else first).groups
    sides = [_taps(first, second, axis)[0] for axis in (0, 1)]
    return math.prod(sides) * first.inputs // groups * second.outputs


def merge(operators: Sequence[Operator], size: Size) -> Operator:
    """Return the operator whose output is the sum of all outputs.

    Args:
        operators: Applied to the same input; their outputs have one shape.
        size: Height and width of the input; None where not known.

    Returns:
        One operator.

    Raises:
        InexactError: If no single convolution does that.
    """
    first = operators[0]
    if any(o.strides != first.strides for o in operators):
        raise InexactError("the branches have different strides")
    dilation = _joint_dilation(operators)
    groups = math.gcd(*(o.groups for o in operators))
    grouped = [regroup(o, groups) for o in operators]
    bias = np.sum([o.bias for o in operators], axis=0)
    if any(o.pads is None for o in operators):
        if any(o.pads is not None or o.size != first.size for o in operators):
            raise InexactError("padding depends on the input's size, which is unknown")
        kernel = np.sum([o.kernel for o in grouped], axis=0)
        return dataclasses.replace(grouped[0], kernel=kernel, bias=bias)
    axes = [_window(operators, axis, dilation[axis], size[axis]) for axis in (0, 1)]
    shape = (axes[0][0], axes[1][0], *grouped[0].kernel.shape[2:])
    kernel = np.zeros(shape)
    for operator in grouped:
        fronts = [pad for pad, _ in operator.pads or NO_PADS]
        top, left = (
            (axis[1][0] - front) // step
            for axis, front, step in zip(axes, fronts, dilation, strict=True)
        )
        high, wide = operator.size
        kernel[top : top + high, left : left + wide] += operator.kernel
    return Operator(
        kernel, bias, groups, first.strides, dilation, (axes[0][1], axes[1][1])
    )


def regroup(operator: Operator, groups: int) -> Operator:
    """Return the same operator with fewer groups, zeros between the old ones.

    Args:
        operator: The operator.
        groups: Divides its groups.

    Returns:
        An operator with `groups` groups.
    """
    if operator.groups == groups:
        return operator
    per, rows, cols = (
        operator.groups // groups,
        operator.kernel.shape[2],
        operator.outputs // operator.groups,
    )
    kernel = np.zeros((*operator.size, rows * per, operator.outputs))
    for group in range(operator.groups):
        at, out = group % per * rows, slice(group * cols, (group + 1) * cols)
        kernel[:, :, at : at + rows, out] = operator.kernel[..., out]
    return dataclasses.replace(operator, kernel=kernel, groups=groups)


def _blocks(operator: Operator) -> np.ndarray:
    """Return the kernel as (height, width, in / groups, groups, out / groups)."""
    shape = operator.kernel.shape
    return operator.kernel.reshape(*shape[:3], operator.groups, -1)


def _response(operator: Operator, value: np.ndarray) -> np.ndarray:
    """Return what an operator without padding makes of constant channels."""
    rows = value.reshape(operator.groups, -1).T
    found = np.einsum("hwigo,ig->go", _blocks(operator), rows)
    return np.asarray(found.reshape(-1))


def _joint_pads(first: Operator, second: Operator) -> Pads | None:
    """Return the padding of both; what `second` pads must be zero in `first` too."""
    if second.pads == NO_PADS:
        if first.pads is None and not second.pointwise:
            raise InexactError("padding depends on the input's size, which is unknown")
        return first.pads
    if not first.pointwise or np.any(first.bias):
        raise InexactError("what follows pads with zeros, which differ from its border")
    if first.pads == NO_PADS:
        return second.pads
    if first.pads is None or second.pads is None:
        raise InexactError("padding depends on the input's size, which is unknown")
    (a, b), (c, d) = first.pads, second.pads
    return (a[0] + c[0], a[1] + c[1]), (b[0] + d[0], b[1] + d[1])


def _taps(first: Operator, second: Operator, axis: int) -> tuple[int, int, int, int]:
    """Return size and dilation of both kernels, and the steps of either one's taps."""
    k1, k2 = first.size[axis], second.size[axis]
    d1, d2 = first.dilation[axis], second.dilation[axis]
    stride = first.strides[axis]
    if k2 == 1:
        size, dilation, steps = k1, d1 if k1 > 1 else 1, (1, 0)
    elif stride == 1 and (k1 == 1 or d1 == d2):
        size, dilation, steps = k1 + k2 - 1, d2, (1, 1)
    elif d1 == d2 == 1:
        size, dilation, steps = k1 + (k2 - 1) * stride, 1, (1, stride)
    else:
        raise InexactError("the kernels have different dilations")
    if dilation > 1 and stride * second.strides[axis] > 1:
        raise InexactError("one convolution cannot both stride and dilate")
    return size, dilation, *steps


def _joint_dilation(operators: Sequence[Operator]) -> Pair:
    found: list[int] = []
    for axis in (0, 1):
        given = {o.dilation[axis] for o in operators if o.size[axis] > 1}
        if len(given) > 1:
            raise InexactError("the branches have different dilations")
        found.append(given.pop() if given else 1)
    return found[0], found[1]


def _window(
    operators: Sequence[Operator], axis: int, dilation: int, size: int | None
) -> tuple[int, Pair]:
    """Return the kernel size that covers all windows, and its padding."""
    rows = [(o.pads or NO_PADS)[axis] for o in operators]
    front = max(pad for pad, _ in rows)
    ends = [
        (o.size[axis] - 1) * dilation - pad
        for o, (pad, _) in zip(operators, rows, strict=True)
    ]
    end = max(ends)
    if any((front - pad) % dilation for pad, _ in rows):
        raise InexactError("the branches' pixels lie between each other's")
    count = (front + end) // dilation + 1
    slack = {pad - last for (_, pad), last in zip(rows, ends, strict=True)}
    if len(slack) == 1:
        return count, (front, slack.pop() + end)
    if size is None:
        raise InexactError("padding depends on the input's size, which is unknown")
    stride = operators[0].strides[axis]
    cells = {(size - 1 + more) // stride for more in slack}
    if len(cells) > 1:
        raise InexactError("the branches' outputs differ in size")
    return count, (front, max(stride * cells.pop() + end - (size - 1), 0))
