"""NEXcepTion: the blurring pool by its definition, on sides odd and even."""

import keras
import numpy as np
import pytest

from keras_lightnets import layers


@pytest.mark.parametrize("sides", [(6, 7), (2, 3)])
def test_the_blurring_pool_mirrors_the_border(sides, tmp_path):
    image = keras.Input((None, None, 2))
    model = keras.Model(image, layers.BlurPool(name="blur")(image))
    x = np.random.default_rng(0).normal(size=(1, *sides, 2)).astype("float32")
    rows = np.asarray([1.0, 2.0, 1.0]) / 4
    padded = np.pad(x[0], ((1, 1), (1, 1), (0, 0)), mode="reflect")
    counts = [(side + 1) // 2 for side in sides]
    expected = np.zeros((1, *counts, 2))
    for i in range(counts[0]):
        for j in range(counts[1]):
            window = padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            expected[0, i, j] = np.einsum("ijc,i,j->c", window, rows, rows)
    np.testing.assert_allclose(model(x), expected, atol=1e-6)
    fixed = layers.BlurPool().compute_output_shape((None, *sides, 2))
    assert fixed == (None, *counts, 2)
    model.save(tmp_path / "blur.keras")
    again = keras.saving.load_model(tmp_path / "blur.keras")
    np.testing.assert_array_equal(again(x), model(x))


def test_a_constant_map_stays_constant():
    image = keras.Input((5, 8, 3))
    model = keras.Model(image, layers.blur_pool(image, "stage2_block1"))
    found = np.asarray(model(np.full((1, 5, 8, 3), -2.0, "float32")))
    assert found.shape == (1, 3, 4, 3)
    np.testing.assert_allclose(found, -2.0, rtol=1e-6)
