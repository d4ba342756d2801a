"""Output stride: strides past a limit become dilation."""

from dataclasses import dataclass
from typing import Any


@dataclass
class DilatedStride:
    """Follows the stride of a network that is being built.

    Once the product of strides reaches `output_stride`, later strides are
    replaced with dilation, which keeps the resolution and the receptive field.

    Attributes:
        output_stride: Largest stride wanted.
        current: Product of the strides so far.
        dilation: Dilation of the next convolution.
        eager: Whether the convolution that loses its stride is dilated already, as
            in torchvision.

    Example:
        >>> stride = DilatedStride(output_stride=16, current=16)
        >>> stride.step(2)   # the strided convolution itself is not dilated
        (1, 1)
        >>> stride.step(1)   # those behind it are
        (1, 2)

    Reference:
        Chen et al. 2017, https://arxiv.org/abs/1706.05587.
    """

    output_stride: int = 32
    current: int = 1
    dilation: int = 1
    eager: bool = False

    def step(self, stride: int) -> tuple[int, int]:
        """Return the stride and dilation of the next convolution.

        Args:
            stride: Stride in the table.

        Returns:
            (stride, dilation) to build with.
        """
        dilation = self.dilation
        if stride == 1:
            return 1, dilation
        if self.current < self.output_stride:
            self.current *= stride
            return stride, dilation
        self.dilation *= stride
        return 1, self.dilation if self.eager else dilation


def thinned(x: Any, stride: int, dilation: int, name: str) -> tuple[Any, int, int]:
    """Prepare a convolution that is both strided and dilated: `{name}_pool`.

    Keras has none. Where the stride divides the dilation, every cell that it reads
    lies on the coarser grid, so that taking that grid first is the same.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        stride: Stride of the convolution.
        dilation: Dilation of the convolution.
        name: Stem of the layer's name.

    Returns:
        The tensor, the stride and the dilation to convolve with.

    Raises:
        ValueError: If both are above 1 and the stride does not divide the dilation.
    """
    if stride == 1 or dilation == 1:
        return x, stride, dilation
    if dilation % stride:
        raise ValueError(
            "A strided convolution needs a dilation that its stride divides. "
            f"Received: stride={stride}, dilation={dilation}"
        )
    from keras import layers  # backbone files name DilatedStride, without keras

    x = layers.MaxPooling2D(1, strides=stride, name=f"{name}_pool")(x)
    return x, 1, dilation // stride
