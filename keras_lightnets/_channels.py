"""The one channel-rounding rule."""


def make_divisible(
    value: float, divisor: int = 8, floor: int | None = None, limit: float = 0.9
) -> int:
    """Round a channel count to a multiple of `divisor`, not far below it.

    Args:
        value: Channel count before rounding, usually width times a table's entry.
        divisor: The result is a multiple of it.
        floor: Least result; `divisor` when not given.
        limit: Least share of `value` that the result may be; 0 for plain rounding.

    Returns:
        The rounded channel count.

    Reference:
        MobileNetV2's reference code, https://arxiv.org/abs/1801.04381.
    """
    least = divisor if floor is None else floor
    rounded = max(least, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < limit * value else rounded
