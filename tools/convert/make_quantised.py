"""Makes tests/golden/quantised.json: how int8 files follow the models they come from.

Run it from a checkout where the package is installed with the extras `qat` and
`litert`; DATA is a folder of pictures::

    python tools/convert/make_quantised.py DATA [FAMILY ...]

Without families it takes all that the file lacks. The smallest network of each family
is built as classifier, detector (SSDLite) and segmenter (LR-ASPP), gets statistics of
real pictures (`condition`), is quantised after training and during it, and both files
run on pictures that were not used before.
"""

import dataclasses
import logging
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_lightnets._registry import FAMILIES, family_module
from keras_lightnets._spec import ModelSpec
from keras_lightnets.tools.convert import golden_files
from keras_lightnets.tools.export import tflite, verify
from keras_lightnets.tools.quantize import qat

LOG = logging.getLogger(__name__)
FORMS = ("classification", "detection", "segmentation")
HEADS = {"detection": "ssdlite", "segmentation": "lraspp"}
SIZE = 64
CLASSES = 10
CALIBRATION = 32
TESTS = 32
# The reference kernels are slow.
FLOOR_TESTS = 8
TRAINING_STEPS = 2
# Offset of a normalisation in front of an activation, in deviations.
OFFSET = 2.0
MAIN_DIRECTIONS = 2
ACTIVATIONS = ("ReLU", "LeakyReLU", "PReLU", "Activation", "Relu", "Relu6")
# What may stand between the last linear layers and the outputs.
PASSING = ("Add", "Concatenate", "Reshape", "Flatten", "GlobalAveragePooling2D")


@dataclasses.dataclass(frozen=True)
class Case:
    """One network in one form.

    Attributes:
        family: Its family.
        form: One of FORMS.
        name: Registry name of the smallest network that can have this form; of the
            smallest at all where none can.
        reason: Why none can, from the spec; empty otherwise.
    """

    family: str
    form: str
    name: str
    reason: str = ""


def cases() -> list[Case]:
    """List every family in every form."""
    return [_case(family, form) for family in FAMILIES for form in FORMS]


def _case(family: str, form: str) -> Case:
    specs = sorted(family_module(family).SPECS, key=_cost)
    reasons = [_refusal(spec, form) for spec in specs]
    for spec, reason in zip(specs, reasons, strict=True):
        if not reason:
            return Case(family, form, spec.name)
    return Case(family, form, specs[0].name, reasons[0])


def _cost(spec: ModelSpec) -> tuple[float, int]:
    facts = golden_files.read(spec.name)
    return facts["madds"] / spec.default_size**2, facts["params"]


def _refusal(spec: ModelSpec, form: str) -> str:
    """Why a network cannot have a form, empty if it can."""
    if not spec.int8_ok:
        return spec.flags_reason
    levels = {level.name: level.stride for level in spec.levels}
    if form == "detection" and not {"c4", "c5"} <= set(levels):
        return f"SSDLite reads strides 16 and 32; its maps have {[*levels.values()]}"
    if form == "segmentation" and not {"c3"} < set(levels):
        return f"LR-ASPP reads strides 8 and more; its maps have {[*levels.values()]}"
    if form == "detection" and not spec.exact_strides:
        return f"default boxes need maps of ceil(side / stride) cells: {_flags(spec)}"
    return ""


def _flags(spec: ModelSpec) -> str:
    return spec.flags_reason or "this network's maps have others"


def build(case: Case, side: int = SIZE) -> Any:
    """Build a network in its form, with random weights.

    Args:
        case: Which.
        side: Side of the pictures.

    Returns:
        The Keras 3 model; classes are logits.
    """
    import keras

    from keras_lightnets import create_model, get_spec, heads

    keras.utils.set_random_seed(0)
    shape = (side, side, 3)
    if case.form == "classification":
        return create_model(
            case.name,
            weights=None,
            input_shape=shape,
            classes=CLASSES,
            classifier_activation=None,
        )
    head = HEADS[case.form]
    spec = get_spec(case.name)
    body = create_model(
        case.name,
        weights=None,
        input_shape=shape,
        endpoints=heads.pick_endpoints(head, [level.name for level in spec.levels]),
    )
    options: dict[str, Any] = {"classes": CLASSES}
    if case.form == "detection":
        options["image_size"] = side
    return heads.attach(body, head, heads.HEADS[head].config(**options))


def condition(model: Any, images: np.ndarray) -> Any:
    """Give a network with random weights what training gives one.

    A random network with normalisations is chaotic: behind forty ReLUs two pictures
    that differ in their last bit look unrelated, and so do a model and its int8 file.
    A trained one passes its signal on. So normalisations get the statistics of real
    pictures, those in front of an activation an offset that keeps nearly all values in
    its linear part, and the last layers read the main directions of what reaches them,
    so that no class is always the best.

    Args:
        model: Functional model; changed in place.
        images: Pictures (count, height, width, 3) of 0-255.

    Returns:
        The model, its parallel branches merged as exports have them.
    """
    import keras

    from keras_lightnets.tools._functional import nodes
    from keras_lightnets.tools.fuse import merge_branches

    rng = np.random.default_rng(0)
    graph = nodes(model)
    readers = _readers(graph)
    layers = [layer for layer in model.layers if layer.weights]
    norms = [x for x in layers if isinstance(x, keras.layers.BatchNormalization)]
    for norm in norms:
        shape = norm.moving_mean.shape
        active = _is_active(readers.get(norm.name, ()))
        if norm.scale:
            norm.gamma.assign(rng.uniform(0.8, 1.25, shape))
        if norm.center:
            norm.beta.assign(rng.normal(OFFSET if active else 0.0, 0.3, shape))
    for layer in layers:
        if getattr(layer, "use_bias", False):
            layer.bias.assign(rng.normal(0.0, 0.1, layer.bias.shape))
            if _is_active(readers.get(layer.name, ())):
                # He's gain; the default initialiser lets the signal fade.
                layer.kernel.assign(layer.kernel * np.sqrt(2.0))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(images, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    last = _last_layers(model, graph)
    if last:  # SqueezeNet ends in a ReLU
        _read_main_directions(model, last, images)
    return merge_branches(model)


def _readers(graph: Sequence[Any]) -> dict[str, list[Any]]:
    """Who reads each operation's output, by name."""
    import keras

    from keras_lightnets.tools._functional import history

    found: dict[str, list[Any]] = {}
    for node in graph:
        for tensor in keras.tree.flatten([node.arguments.args, node.arguments.kwargs]):
            if isinstance(tensor, keras.KerasTensor):
                found.setdefault(history(tensor).name, []).append(node.operation)
    return found


def _is_active(readers: Sequence[Any]) -> bool:
    return any(type(reader).__name__ in ACTIVATIONS for reader in readers)


def _last_layers(model: Any, graph: Sequence[Any]) -> dict[str, Any]:
    """The linear layers behind which nothing but sums and shapes comes, by name."""
    import keras

    from keras_lightnets.tools._functional import history

    sources = {
        history(tensor).name: node.arguments.args
        for node in graph
        for tensor in node.outputs
    }
    left, last = [history(tensor) for tensor in model.outputs], {}
    while left:
        operation = left.pop()
        if isinstance(operation, keras.layers.Dense | keras.layers.Conv2D):
            last[operation.name] = operation
        elif type(operation).__name__ in PASSING:
            given = keras.tree.flatten(list(sources[operation.name]))
            left += [history(tensor) for tensor in given]
    return last


def _read_main_directions(
    model: Any, last: Mapping[str, Any], images: np.ndarray
) -> None:
    """Let layers read the directions in which most of their input varies."""
    import keras

    rng = np.random.default_rng(1)
    probe = keras.Model(model.input, {name: op.input for name, op in last.items()})
    for name, value in probe(images, training=False).items():
        kernel = last[name].kernel
        features = np.asarray(value).reshape(-1, value.shape[-1])
        if np.prod(kernel.shape[:-1]) != features.shape[-1]:
            continue
        mean = features.mean(0)
        _, spread, directions = np.linalg.svd(features - mean, full_matrices=False)
        taken = directions[:MAIN_DIRECTIONS].T / spread[0] * np.sqrt(len(features))
        mixed = taken @ rng.normal(0.0, 1.0, (taken.shape[1], kernel.shape[-1]))
        kernel.assign(mixed.reshape(kernel.shape))
        if last[name].use_bias:
            last[name].bias.assign(-mean @ mixed)


@dataclasses.dataclass(frozen=True)
class Followed:
    """How the int8 files of a network follow what they came from.

    Attributes:
        ptq: The file quantised after training, against the float model.
        qat: The file of the calibrated and trained emulation, against that emulation.
        floor: Mean difference, in steps, between TFLite's two sets of int8 kernels on
            that file, by output: what rounding alone makes of a deep network.
        sure: Share of equal decisions of the second comparison where the two best
            classes differ by more than `sure_margin` of the floor, by output.
    """

    ptq: verify.Verification
    qat: verify.Verification
    floor: dict[str, float]
    sure: dict[str, float]


def sure_margin(floor: float) -> float:
    """Return the margin, in steps, above which decisions should not change.

    Args:
        floor: Mean difference between two sets of kernels, in steps.

    Returns:
        4 as in `verify`, or 6 times the floor: the differences of two outputs are
        spread twice as far as one, and of thousands only a few exceed that.
    """
    return max(verify.CLEAR_MARGIN_STEPS, 6.0 * floor)


def quantise(model: Any, images: np.ndarray, tests: np.ndarray) -> Followed:
    """Make the int8 files of a model and compare each with what it came from.

    Args:
        model: The Keras 3 model.
        images: Pictures for ranges and training, (count, height, width, 3) of 0-255.
        tests: Pictures to compare on.

    Returns:
        The comparisons.
    """
    floats = _named(model(tests.astype("float32"), training=False))
    content = tflite.convert(model, "int8", "uint8", list(images))
    after = verify.verify(content, _stored(floats), list(tests), "int8")
    aware, outputs = _emulate(model, images, tests)
    emulated = _named(outputs)
    content = tflite.convert(aware, "int8", "uint8")
    during = verify.verify(content, _stored(emulated), list(tests), "int8")
    files = tflite.run(content, tests)
    few = tests[:FLOOR_TESTS]
    plain = tflite.run(content, few, "reference")
    floor, sure = {}, {}
    for row in during.outputs:
        found, name = files[row.name], row.name
        floor[name] = float(np.abs(plain[name] - found[: len(few)]).mean() / row.step)
        if row.clear_agreement is not None:
            margin = sure_margin(floor[name]) * row.step
            sure[name] = _agreement(emulated[name], found, margin)
    return Followed(after, during, floor, sure)


def _agreement(expected: np.ndarray, found: np.ndarray, margin: float) -> float:
    """Share of equal decisions where the two best classes differ by a margin."""
    best = np.partition(expected, -2, axis=-1)
    clear = best[..., -1] - best[..., -2] > margin
    same = expected.argmax(-1) == found.argmax(-1)
    return float(same[clear].mean()) if clear.any() else 1.0


def _named(outputs: Any) -> dict[str, np.ndarray]:
    table = outputs if isinstance(outputs, Mapping) else {"output": outputs}
    return {key: np.asarray(value) for key, value in table.items()}


def _emulate(model: Any, images: np.ndarray, tests: np.ndarray) -> tuple[Any, Any]:
    """Calibrate, train a few steps towards the float model, and run on `tests`."""
    import tensorflow as tf

    few = images[: len(images) // 4]
    targets = model(few.astype("float32"), training=False)
    settings = qat.Settings(epochs=1, warmup_steps=1, learning_rate=1e-4, recalibrate=0)

    def loss(targets: Any, outputs: Any) -> Any:
        pairs = zip(tf.nest.flatten(targets), tf.nest.flatten(outputs), strict=True)
        return tf.add_n([tf.reduce_mean(tf.square(a - b)) for a, b in pairs])

    aware = qat.prepare(model, None)
    # Tracing a network costs as much as twenty runs of it.
    tf.config.run_functions_eagerly(True)
    try:
        qat.calibrate(aware, [images])
        qat.train(aware, [(few, targets)] * TRAINING_STEPS, loss, settings)
        qat.calibrate(aware, [images])
        return aware, aware(tests)
    finally:
        tf.config.run_functions_eagerly(False)


def _stored(arrays: Mapping[str, np.ndarray]) -> Callable[[np.ndarray], Any]:
    """A model that returns known outputs, sample after sample."""
    position = iter(range(len(next(iter(arrays.values())))))

    def run(_: np.ndarray) -> Any:
        i = next(position)
        return {key: array[i : i + 1] for key, array in arrays.items()}

    return run


def figures(found: Followed) -> dict[str, Any]:
    """Return what is kept of a comparison.

    Args:
        found: The comparison.

    Returns:
        By way: counts of ops, float ops and XNNPACK partitions, and per output the
        mean error in quantisation steps and which share of the decisions agrees, of
        all and of those with a margin above 4 steps; "qat" also has the floor and
        the agreement above it.
    """
    table: dict[str, Any] = {}
    for way, checked in (("ptq", found.ptq), ("qat", found.qat)):
        table[way] = {
            "ops": sum(checked.ops.values()),
            "float_ops": len(checked.float_ops),
            "partitions": checked.xnnpack_partitions,
            "outputs": {
                row.name: {
                    "mean_error_steps": round(row.mean_error_steps, 3),
                    "agreement": _rounded(row.agreement),
                    "clear_agreement": _rounded(row.clear_agreement),
                    "clear_share": _rounded(row.clear_share),
                }
                for row in checked.outputs
            },
        }
    for name, row in table["qat"]["outputs"].items():
        row["floor_steps"] = round(found.floor[name], 3)
        row["sure_agreement"] = _rounded(found.sure.get(name))
    return table


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def read_pictures(folder: pathlib.Path, count: int, side: int) -> np.ndarray:
    """Read the first pictures of a folder, by name.

    Args:
        folder: Holds JPEG files.
        count: How many.
        side: They are cut to a square and resized to this side.

    Returns:
        uint8 array (count, side, side, 3).

    Raises:
        ValueError: If the folder holds fewer.
    """
    from PIL import Image, ImageOps

    files = sorted(folder.glob("*.jpg"))[:count]
    if len(files) < count:
        raise ValueError(
            f"{count} JPEG pictures are needed; {folder} holds {len(files)}."
        )
    rows = [ImageOps.fit(Image.open(f).convert("RGB"), (side, side)) for f in files]
    return np.stack([np.asarray(row) for row in rows])


def measure(case: Case, pictures: np.ndarray) -> dict[str, Any]:
    """Build, condition and quantise one case.

    Args:
        case: Which.
        pictures: CALIBRATION + TESTS pictures.

    Returns:
        Network and the figures of both files.
    """
    model = build(case, pictures.shape[1])
    model = condition(model, pictures[:CALIBRATION].astype("float32"))
    found = quantise(model, pictures[:CALIBRATION], pictures[CALIBRATION:])
    return {"name": case.name, **figures(found)}


def main(arguments: Sequence[str]) -> int:
    """Measure what lacks, or the named families, and write it down case by case.

    Args:
        arguments: Folder of pictures, then families.

    Returns:
        The process's exit status.
    """
    import keras

    folder, *families = arguments
    pictures = read_pictures(pathlib.Path(folder), CALIBRATION + TESTS, SIZE)
    known = golden_files.read("quantised", missing={})
    for case in sorted(cases(), key=lambda case: FORMS.index(case.form)):
        there = known.setdefault(case.family, {})
        if case.family not in families if families else case.form in there:
            continue
        start = time.process_time()
        there[case.form] = (
            {"reason": case.reason} if case.reason else measure(case, pictures)
        )
        seconds = time.process_time() - start
        LOG.info("%s %s %.0f s %s", case.family, case.form, seconds, there[case.form])
        keras.backend.clear_session()
        golden_files.write("quantised", dict(sorted(known.items())))
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(sys.argv[1:]))
