"""Bytes of parameters in the Edge TPU compiler's package.

Parameter memory: a convolution takes kh * kw * ceil(cin, 4) * P(cout) + 8 * P(cout)
bytes with P(c) = ceil(c, 16) up to 64 channels and ceil(c, 64) above, a dense layer
the same, a depthwise one 3 * kh * kw * ceil(c, 64) + 8 * c. A softmax takes 48 bytes
per class in packages of the newest compiler and none in those of version 16 and older:
one MobileNet file comes in two packages that differ by 9 %. What is counted lies
between, so that both are within 5 %, as are all of the 72 compiled files but one: LSTM,
of which there is a single package, so that no formula could be checked; it is not
counted. The 8 MiB of cache are an upper bound.
"""

import math

from keras_lightnets.tools.export._flatbuffer import Op

CACHE_BYTES = 16 * 512 * 1024
# Between 0 (compiler 16) and 48 (the newest packages).
SOFTMAX_BYTES = 12


def ceil_to(value: int, step: int) -> int:
    """Return the next multiple of a step."""
    return -(-value // step) * step


def outputs_padded(channels: int) -> int:
    """Return the filters that the compiler stores for a number of them."""
    return ceil_to(channels, 16 if channels <= 64 else 64)


def kernel_bytes(taken: int, made: int, taps: int) -> int:
    """Return the bytes of a convolution's or a dense layer's parameters.

    Args:
        taken: Input channels.
        made: Output channels.
        taps: Height times width of the kernel.
    """
    padded = outputs_padded(made)
    return taps * ceil_to(taken, 4) * padded + 8 * padded


def parameter_bytes(op: Op) -> int:
    """Predict the bytes of an op's weights in the compiled package; 0 without."""
    if op.name == "SOFTMAX":
        return SOFTMAX_BYTES * math.prod(op.outputs[0].shape)
    if op.name not in ("CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED") and (
        op.name != "DEPTHWISE_CONV_2D"
    ):
        return 0
    weights = op.inputs[1]
    if weights is None:
        return 0
    if op.name == "DEPTHWISE_CONV_2D":
        _, high, wide, channels = weights.shape
        return 3 * high * wide * ceil_to(channels, 64) + 8 * channels
    made, taken = weights.shape[0], weights.shape[-1]
    return kernel_bytes(taken, made, math.prod(weights.shape[1:-1]))
