"""Makes tests/parity/channelnet-authors.npz: outputs of the authors' ChannelNet code.

Run it from a checkout where the package is installed, with the folder of a checkout of
HongyangGao/ChannelNets::

    python tools/convert/make_channelnet_parity.py FOLDER

That code builds a graph of TensorFlow 1. Here its functions run eagerly: the modules
it imports are stand-ins whose convolutions and normalisations take their weights, by
scope, from a network of this package with seeded values.
"""

import importlib
import logging
import pathlib
import sys
import types
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_lightnets.tools.convert import make_parity

LOG = logging.getLogger(__name__)
SIDE = 224
EPSILON = 1e-5  # tensorpack's BatchNorm
# The authors' options: what stands before the logits, ours -> theirs.
TOPS = {"dense": "out_block", "cube": "conv_out_block"}
OPTIONS = {
    "ch_num": 32,
    "block_num": 2,
    "group_num": 2,
    "keep_r": 0.9999,
    "use_rev_conv": False,
    "rev_kernel_size": 64,
    "block_func": "conv_group_block",
    "data_format": "NCHW",
    "is_train": False,
    "class_num": 1000,
}
TAPS = {"c1": "add0", "c2": "add1", "c3": "add2", "c4": "add23"}
TAPS["c5"] = "conv_3_1/conv2/act"
BLOCKS = {
    "conv_1_0": "stage1_block1",
    "conv_1_1": "stage2_block1",
    "conv_1_2": "stage2_block2",
    "conv_1_3": "stage3_block1",
    "conv_1_4": "stage3_block2",
    "conv_1_5": "stage4_block1",
    "conv_2_1": "stage4_block2",
    "conv_2_2": "stage4_block3",
    "conv_2_3": "stage4_block4",
    "conv_3_0": "stage5_block1",
    "conv_3_1": "stage5_block2",
}


class Weights:
    """The weights of a network of this package, by the authors' scopes."""

    def __init__(self, model: Any) -> None:
        self._values = {
            f"{layer.name}/{variable.name}": np.asarray(variable)
            for layer in model.layers
            for variable in layer.weights
        }
        self._used: set[str] = set()

    def of(self, scope: str, layer: str, variable: str, axis: int = -1) -> np.ndarray:
        """Return a variable of a block, or the part of it that a group has."""
        block, *inner = scope.split("/")
        name, part = BLOCKS[block], slice(None)
        if inner and inner[0].startswith("group_"):
            name = f"{name}_{int(inner[1].removeprefix('conv_')) + 1}"
            value = self.named(f"{name}_{layer}/{variable}")
            count = value.shape[axis] // OPTIONS["group_num"]
            first = int(inner[0].removeprefix("group_")) * count
            part = slice(first, first + count)
        value = self.named(f"{name}_{layer}/{variable}")
        index = [slice(None)] * value.ndim
        index[axis] = part
        return value[tuple(index)]

    def named(self, key: str) -> np.ndarray:
        """Return a variable by its name here."""
        self._used.add(key)
        return self._values[key]

    def unused(self) -> set[str]:
        """Return the names of variables that nobody asked for."""
        return set(self._values) - self._used


class StandIns:
    """What the authors' code imports as `tensorflow` and `tensorpack`.

    Attributes:
        weights: Where the layers' weights come from.
        taps: Outputs of named additions, joins and activations.
        flow: The real `tensorflow`.
    """

    def __init__(self, weights: Weights) -> None:
        import tensorflow

        self.weights = weights
        self.taps: dict[str, Any] = {}
        # By its name it cannot be had while the stand-ins are in its place.
        self.flow: Any = tensorflow

    def modules(self) -> dict[str, types.ModuleType]:
        """Return the two modules, with the functions that evaluation uses."""
        tf = self.flow
        flow, pack = types.ModuleType("tensorflow"), types.ModuleType("tensorpack")
        plain = ("expand_dims", "reduce_mean", "reshape", "split", "squeeze")
        for name in (*plain, "transpose", "unstack"):
            setattr(flow, name, getattr(tf, name))
        contrib = types.SimpleNamespace(conv2d=self.conv2d, fully_connected=self.dense)
        activation = self._tapped(tf.nn.relu6)
        fields = {
            "add": self._tapped(tf.add),
            "concat": self._tapped(tf.concat),
            "contrib": types.SimpleNamespace(layers=contrib),
            "get_variable": self.variable,
            "layers": types.SimpleNamespace(conv3d=self.conv3d),
            "nn": types.SimpleNamespace(
                depthwise_conv2d=self.depthwise, relu6=activation
            ),
            "truncated_normal_initializer": lambda **_: None,
        }
        vars(flow).update(fields)
        vars(pack)["BatchNorm"] = self.norm
        vars(pack)["Dropout"] = lambda _, x, **__: x
        return {"tensorflow": flow, "tensorpack": pack}

    def _tapped(self, function: Any) -> Any:
        def call(*inputs: Any, name: str, **options: Any) -> Any:
            self.taps[name] = function(*inputs, **options)
            return self.taps[name]

        return call

    def conv2d(self, x: Any, count: int, *_: Any, **options: Any) -> Any:
        """Convolve as `tf.contrib.layers.conv2d`, whose padding is SAME."""
        tf = self.flow
        scope = options["scope"]
        if scope == "conv_s":
            kernel = self.weights.named("stem_conv/kernel")
        else:
            kernel = self.weights.of(scope, "pw_conv", "kernel")
        _check(kernel.shape[-1] == count, scope)
        return self._first(
            tf.nn.conv2d(self._last(x), kernel, options["stride"], "SAME")
        )

    def depthwise(
        self, x: Any, kernel: Any, strides: Sequence[int], padding: str, **_: Any
    ) -> Any:
        """Convolve each channel as `tf.nn.depthwise_conv2d`."""
        tf = self.flow
        steps = [1, *strides[2:], 1]
        return self._first(
            tf.nn.depthwise_conv2d(self._last(x), kernel, steps, padding)
        )

    def variable(self, name: str, shape: Sequence[int], **_: Any) -> np.ndarray:
        """Return a depthwise kernel as `tf.get_variable`."""
        if name.startswith("out/"):
            kernel = self.weights.named("top_dw_conv/kernel")
        else:
            kernel = self.weights.of(name, "dw_conv", "kernel", axis=2)
        _check(list(kernel.shape) == [int(n) for n in shape], name)
        return kernel

    def conv3d(
        self, x: Any, count: int, size: Sequence[int], strides: Any, **options: Any
    ) -> Any:
        """Convolve as `tf.layers.conv3d`; channels are the first of three axes."""
        tf = self.flow
        scope = options["name"]
        if scope.startswith("out/"):
            # Height and width lie in one axis here: (49, 25, 1, 1).
            kernel = self.weights.named("top_channelwise_conv/kernel")[:, :, 0, 0].T
        else:
            kernel = self.weights.of(scope, "channelwise_conv", "kernel")
        kernel = kernel.reshape(*size, 1, count)
        steps = [1, *strides, 1]
        return self._first(
            tf.nn.conv3d(self._last(x), kernel, steps, options["padding"])
        )

    def dense(self, x: Any, *_: Any, **__: Any) -> Any:
        """Classify as `tf.contrib.layers.fully_connected`."""
        kernel = self.weights.named("top_classifier/kernel")
        return x @ kernel + self.weights.named("top_classifier/bias")

    def norm(self, scope: str, x: Any, **_: Any) -> Any:
        """Normalise as `tensorpack.BatchNorm` does in evaluation."""
        tf = self.flow
        values = []
        for name in ("moving_mean", "moving_variance", "beta", "gamma"):
            if scope == "conv_s/bn":
                value = self.weights.named(f"stem_bn/{name}")
            else:
                value = self.weights.of(scope, "pw_bn", name)
            values.append(value.reshape(1, -1, 1, 1))
        return tf.nn.batch_normalization(x, *values, EPSILON)

    def _last(self, x: Any) -> Any:
        return self.flow.transpose(x, (0, *range(2, x.shape.rank), 1))

    def _first(self, x: Any) -> Any:
        rank = x.shape.rank
        return self.flow.transpose(x, (0, rank - 1, *range(1, rank - 1)))


def _check(right: bool, scope: str) -> None:
    if not right:
        raise ValueError(
            f"The kernel of {scope} has another shape in the authors' code"
        )


def outputs(folder: pathlib.Path, top: str, weights: Weights) -> dict[str, np.ndarray]:
    """Run the authors' network.

    Args:
        folder: Their checkout.
        top: Key of TOPS.
        weights: Its weights.

    Returns:
        {endpoint: array, channels last}.
    """
    import tensorflow as tf

    tf.compat.v1.disable_v2_tensorshape()  # their code reads `.shape[i].value`
    stand_ins = StandIns(weights)
    own = stand_ins.modules()
    before = {name: sys.modules.get(name) for name in own}
    sys.modules.update(own)
    sys.path.insert(0, str(folder))
    try:
        authors = importlib.import_module("model")
        options = types.SimpleNamespace(**OPTIONS, out_func=TOPS[top])
        logits = authors.MobileNet(options).inference(tf.constant(pixels()))
    finally:
        sys.path.pop(0)
        sys.modules.update({k: v for k, v in before.items() if v is not None})
        for name in ("model", "utils", "utils.ops"):
            sys.modules.pop(name, None)
    found = {level: stand_ins.taps[name].numpy() for level, name in TAPS.items()}
    maps = {level: value.transpose(0, 2, 3, 1) for level, value in found.items()}
    return {**maps, "logits": logits.numpy()}


def images() -> np.ndarray:
    """Return two seeded images, (2, SIDE, SIDE, 3), 0-255."""
    small = make_parity.seeded_images((SIDE // 2, SIDE // 2))
    return small.repeat(2, axis=1).repeat(2, axis=2)


def pixels() -> np.ndarray:
    """Return the images as their code takes them, normalised and channels first."""
    mean, std = (np.asarray(v, "float64") for v in make_parity.IMAGENET)
    normalised = ((images() - mean) / std).astype("float32")
    return normalised.transpose(0, 3, 1, 2).copy()


def seeded_network(top: str) -> Any:
    """Return this package's network, with values drawn from its layers' names.

    Args:
        top: Key of TOPS.

    Returns:
        The model; a dict of every feature map and the logits.
    """
    import keras_lightnets

    model = keras_lightnets.ChannelNetV1(
        weights=None,
        input_shape=(SIDE, SIDE, 3),
        endpoints=(*TAPS, "logits"),
        channelwise_top=top == "cube",
    )
    for layer in model.layers:
        for variable in layer.weights:
            _seed(layer, variable)
    return model


def _seed(layer: Any, variable: Any) -> None:
    names = {"gamma": "weight", "moving_variance": "running_var", "kernel": "weight"}
    key = f"{layer.name}.{names.get(variable.name, variable.name)}"
    shape = tuple(variable.shape)
    if len(shape) == 4:
        depthwise = hasattr(layer, "depth_multiplier")
        axes = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
        value = make_parity.seeded_tensor(key, [shape[axis] for axis in axes])
        variable.assign(value.transpose(np.argsort(axes)))
    elif len(shape) == 2:
        variable.assign(make_parity.seeded_tensor(key, shape[::-1]).T)
    else:
        variable.assign(make_parity.seeded_tensor(key, shape))


def main(arguments: Sequence[str]) -> int:
    """Make the file.

    Args:
        arguments: The folder of the authors' checkout.

    Returns:
        The process's exit status.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(arguments) != 1:
        LOG.error("Give the folder of a checkout of HongyangGao/ChannelNets")
        return 2
    stored: dict[str, Any] = {}
    networks = {top: Weights(seeded_network(top)) for top in TOPS}
    for top, weights in networks.items():
        for level, array in outputs(pathlib.Path(arguments[0]), top, weights).items():
            most, apart = np.abs(array).max(), np.abs(array[0] - array[1]).max()
            LOG.info("%s %s %s %.3g %.3g", top, level, array.shape, most, apart)
            stored[f"{top}_{level}"] = make_parity.sample(array)
            stored[f"{top}_{level}_max"] = np.float32(most)
        if weights.unused():
            raise ValueError(f"Their code never used {sorted(weights.unused())}")
    path = make_parity.FOLDER / "channelnet-authors.npz"
    np.savez_compressed(path, **stored)
    LOG.info("%s: %d bytes", path, path.stat().st_size)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
