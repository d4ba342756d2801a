"""The one channel-rounding rule."""


def make_divisible(value: float, divisor: int = 8, floor: int | None = None) -> int:
    """Round a channel count to a multiple of `divisor`, never below 90 % of it.

    Args:
        value: Channel count before rounding, usually width times a table's entry.
        divisor: The result is a multiple of it.
        floor: Least result; `divisor` when not given.

    Returns:
        The rounded channel count.

    Reference:
        MobileNetV2's reference code, https://arxiv.org/abs/1801.04381.
    """
    least = divisor if floor is None else floor
    rounded = max(least, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded
