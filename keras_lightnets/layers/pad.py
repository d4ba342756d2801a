"""Padding of strided convolutions, TensorFlow's and PyTorch's."""

from typing import Any

from keras import layers


def pad_for(
    x: Any,
    kernel: tuple[int, int],
    stride: int | tuple[int, int],
    dilation: int,
    padding: str,
    name: str,
    pad: int | None = None,
) -> tuple[Any, str]:
    """Pad for a convolution and say which padding the convolution must use.

    TensorFlow's SAME puts the odd pixel of a strided convolution at the bottom
    and right; PyTorch code pads `kernel // 2` on every side. At stride 1 both
    are one for odd kernels, and so is a kernel of one.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        kernel: Height and width of the kernel.
        stride: Stride of the convolution, or (vertical, horizontal).
        dilation: Dilation of the convolution.
        padding: "same", "symmetric" or "valid".
        name: Stem of the layer's name; "_pad" is appended.
        pad: Pixels on every side of a strided convolution, instead of the rule.

    Returns:
        The tensor to convolve and "same" or "valid".
    """
    if stride in (1, (1, 1)) or max(kernel) == 1 or (padding == "same" and pad is None):
        return x, "same"
    rows, cols = ((size - 1) * dilation // 2 for size in kernel)
    if pad is not None or padding == "valid":
        rows = cols = pad or 0
    if rows == cols == 0:
        return x, "valid"
    return layers.ZeroPadding2D((rows, cols), name=f"{name}_pad")(x), "valid"
