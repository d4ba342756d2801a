"""Images of a batch mixed with each other, their classes in the same shares."""

import numpy as np


def mix(
    images: np.ndarray, shares: np.ndarray, mixup: float, cutmix: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mix each image with the one behind it in the batch.

    With both kinds, a batch gets one of them, drawn with equal chances.

    Args:
        images: uint8 (batch, height, width, 3).
        shares: float32 (batch, classes), sums 1.
        mixup: Parameter of the Beta distribution of the blend; 0: off.
        cutmix: Parameter of the Beta distribution of the patch's area; 0: off.
        seed: Decides every random choice.

    Returns:
        Images and shares of the same form.

    Reference:
        Zhang et al. 2017 (mixup), https://arxiv.org/abs/1710.09412; Yun et al. 2019
        (CutMix), https://arxiv.org/abs/1905.04899.

    Example:
        >>> pictures = np.zeros((2, 8, 8, 3), np.uint8)
        >>> _, shares = mix(pictures, np.eye(2, dtype=np.float32), 0.2, 0.0, 1)
        >>> shares.sum(1).tolist()
        [1.0, 1.0]
    """
    if not mixup and not cutmix:
        return images, shares
    rng = np.random.default_rng(seed)
    patch = bool(cutmix) and (not mixup or rng.random() < 0.5)
    alpha = cutmix if patch else mixup
    kept = float(rng.beta(alpha, alpha))
    other, other_shares = np.roll(images, 1, 0), np.roll(shares, 1, 0)
    if patch:
        images, kept = _patched(images, other, kept, rng)
    else:
        blend = images * np.float32(kept) + other * np.float32(1 - kept)
        images = np.rint(blend).astype(np.uint8)
    mixed = kept * shares + (1 - kept) * other_shares
    return images, mixed.astype(np.float32)


def _patched(
    images: np.ndarray, other: np.ndarray, kept: float, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Put a patch of the other images on; its centre is anywhere, so it may be cut."""
    sides = np.array(images.shape[1:3])
    half = sides * np.sqrt(1 - kept) / 2
    centre = rng.uniform(0, sides)
    top, left = np.clip(np.rint(centre - half), 0, sides).astype(int)
    bottom, right = np.clip(np.rint(centre + half), 0, sides).astype(int)
    patched = images.copy()
    patched[:, top:bottom, left:right] = other[:, top:bottom, left:right]
    return patched, 1.0 - float((bottom - top) * (right - left) / sides.prod())
