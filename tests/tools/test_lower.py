"""Lowering for a target: equal in float, and only operations that it runs."""

import keras
import pytest
from keras import layers

pytest.importorskip("tf_keras")
pytest.importorskip("ai_edge_litert")

from quant_models import pictures

from keras_lightnets.tools.export import lower, tflite
from keras_lightnets.tools.quantize import bridge


def test_unknown_target_is_refused():
    image = keras.Input((8, 8, 3), name="image")
    model = keras.Model(image, layers.Conv2D(4, 3, name="conv")(image))
    with pytest.raises(ValueError, match="tpu.*edgetpu"):
        lower.lower(bridge.to_graph(model), "tpu")
    with pytest.raises(ValueError, match="tpu.*edgetpu"):
        tflite.convert(model, "int8", "int8", pictures(1), "tpu")
