"""Turns a spec and its builder into a function of the keras.applications kind."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_lightnets import _inputs, _weights
from keras_lightnets._errors import WeightsError, unknown
from keras_lightnets._layout import Layout
from keras_lightnets._spec import ModelSpec

Builder = Callable[[Any, Any, int], dict[str, Any]]
Neck = Callable[[Any, Any], Any]
Classifier = Callable[[Any, Any, int], Any]

# What may differ between two specs of one and the same network.
_LABELS = ("name", "function", "default_size", "weights", "top1", "dropout")

_DOC = """Instantiates the {function} architecture.

Input: RGB images as floats of 0-255; the model normalises them itself unless
`include_preprocessing=False`, when it expects what `preprocess_input(x,
include_preprocessing=False)` returns. Published size {size}x{size}.

Args:
    include_top: Whether to end in the classifier.
    weights: None (random), "imagenet" (the family's default weights), the tag of
        another published set ({tags}), or the path of a file: safetensors, a
        PyTorch checkpoint in a publisher's layout, or .weights.h5.
    input_tensor: Keras tensor to build on.
    input_shape: (height, width, channels); at least 32x32.
    pooling: Without the classifier: None (feature map), "avg" or "max".
    classes: Number of classes of the classifier.
    classifier_activation: Activation of the classifier; None returns logits.
    name: Name of the model.
    include_preprocessing: Whether the model starts with the normalisation.
    endpoints: Names of feature maps to return as a dict, out of {levels},
        "features" (what include_top=False returns) and "logits"; replaces the
        classifier.
    output_stride: {strides}; smaller ones trade strides for dilation.
    accept_licence: Accept the licence of weights that ask for it, such as
        non-commercial ones; `keras-lightnets info` shows it.
    **changes: Fields of the spec to change, such as `width=0.75`.

Returns:
    A flat functional `keras.Model`. Its output is (batch, classes) with the
    classifier, (batch, height / 32, width / 32, channels) without, (batch,
    channels) with pooling, or a dict of (batch, height / stride, width / stride,
    channels) with endpoints.

Raises:
    ValueError: If an argument is not legal; the legal values are listed.
    WeightsError: If the weights cannot be had or do not fit.

Example:
    >>> model = {function}(weights=None, classes=10)  # doctest: +SKIP
    >>> model(images).shape  # doctest: +SKIP
    (8, 10)

Reference:
    {reference}
"""


@dataclasses.dataclass(frozen=True)
class Family:
    """What a backbone file hands over.

    Attributes:
        specs: All variants.
        build: Builds the feature maps; returns the levels and "features".
        layouts: Publishers' tensor names, by layout name.
        neck: Layers between pooling and classifier, on (batch, 1, 1, channels).
        classifier: Makes the logits of "features" where they are not pooling, neck
            and a dense layer; takes the spec, the map and the number of classes.
    """

    specs: Sequence[ModelSpec]
    build: Builder
    layouts: Mapping[str, Layout]
    neck: Neck | None = None
    classifier: Classifier | None = None


def make_application(spec: ModelSpec, family: Family) -> Callable[..., Any]:
    """Return the public function of a spec.

    Args:
        spec: The network.
        family: Its builder and layouts.

    Returns:
        A function with the arguments of `keras.applications`, documented.
    """

    def application(
        include_top: bool = True,
        weights: Any = "imagenet",
        input_tensor: Any = None,
        input_shape: Any = None,
        pooling: str | None = None,
        classes: int = 1000,
        classifier_activation: str | None = "softmax",
        name: str | None = None,
        *,
        include_preprocessing: bool = True,
        endpoints: Sequence[str] | None = None,
        output_stride: int = 32,
        accept_licence: bool = False,
        **changes: Any,
    ) -> Any:
        wanted = _variant(spec.replace(**changes), family.specs)
        include_top = include_top and endpoints is None or "logits" in (endpoints or ())
        _check(wanted, pooling, endpoints, output_stride)
        source = _weights.resolve(wanted, family.layouts, weights, accept_licence)
        if source is not None:
            _check_top(wanted, source, include_top, classes, classifier_activation)
            wanted = wanted.replace(**{**source.changes, **changes})
        x, inputs = _inputs.input_layer(
            wanted, input_tensor, input_shape, fixed=include_top
        )
        if include_preprocessing:
            # A net that is not registered has no weights; its relative's rule holds.
            rule = (source or (wanted if wanted.weights else spec)).preprocessing
            x = _inputs.normalise(x, rule)
        maps = family.build(wanted, x, output_stride)
        top = _Top(include_top, pooling, classes, classifier_activation)
        outputs = _outputs(wanted, family, maps, top, endpoints)
        import keras

        model = keras.Model(inputs, outputs, name=name or wanted.name)
        if source is not None:
            _weights.load(model, source)
        return model

    _describe(application, spec, family.build.__module__)
    return application


def _describe(application: Any, spec: ModelSpec, module: str) -> None:
    """Give a spec's function its name and documentation."""
    application.__name__ = application.__qualname__ = spec.function
    application.__module__ = module
    application.__doc__ = _DOC.format(
        function=spec.function,
        size=spec.default_size,
        tags=", ".join(f'"{w.tag}"' for w in spec.weights) or "none published",
        levels=", ".join(f'"{level.name}"' for level in spec.levels),
        strides=", ".join(str(s) for s in spec.output_strides),
        reference=spec.reference,
    )


def make_preprocess(specs: Sequence[ModelSpec]) -> Callable[..., Any]:
    """Return a family's `preprocess_input`.

    Args:
        specs: The family's variants, the default first.

    Returns:
        The function.
    """

    def preprocess_input(
        x: Any,
        *,
        include_preprocessing: bool = True,
        name: str | None = None,
        weights: str = "imagenet",
    ) -> Any:
        """Prepare RGB images of 0-255 for a model of this family.

        Args:
            x: Images, (batch, height, width, 3), 0-255.
            include_preprocessing: As given to the model. True (the default of
                both): the model normalises itself and `x` returns unchanged.
            name: Registry name of the variant; None: the family's first.
            weights: Tag of the published weights that the model holds.

        Returns:
            `x`, or float32 images normalised with the mean and deviation that the
            weights were trained with.

        Raises:
            ValueError: If the family has no such variant or weights.
        """
        by_name = {spec.name: spec for spec in specs}
        if name is not None and name not in by_name:
            raise unknown("variant of the family", name, by_name)
        spec = by_name[name] if name is not None else specs[0]
        found = spec.find_weights(weights)
        if found is None and weights != "imagenet":
            tags = ["imagenet", *(entry.tag for entry in spec.weights)]
            raise unknown(f"weights of {spec.name}", weights, tags)
        rule = (found or spec).preprocessing
        return _inputs.preprocess_with(rule, x, include_preprocessing)

    return preprocess_input


@dataclasses.dataclass(frozen=True)
class _Top:
    include: bool
    pooling: str | None
    classes: int
    activation: str | None


def _variant(spec: ModelSpec, specs: Sequence[ModelSpec]) -> ModelSpec:
    """Return the registered spec of the same network, so that its weights are found."""

    def network(s: ModelSpec) -> tuple[Any, ...]:
        return tuple(
            getattr(s, f.name) for f in dataclasses.fields(s) if f.name not in _LABELS
        )

    same = [s for s in specs if type(s) is type(spec) and network(s) == network(spec)]
    if not same or any(s.name == spec.name for s in same):
        known = any(s.name == spec.name for s in same)
        return spec if known else dataclasses.replace(spec, weights=())
    return dataclasses.replace(same[0], dropout=spec.dropout)


def _check(
    spec: ModelSpec, pooling: str | None, endpoints: Any, output_stride: int
) -> None:
    _inputs.check_pooling(pooling)
    legal = [*(level.name for level in spec.levels), "features", "logits"]
    if isinstance(endpoints, str) or endpoints == ():
        raise ValueError(
            f"endpoints must be a tuple of names out of {', '.join(legal)}, such as "
            f"('c3', 'c5'). Received: {endpoints!r}"
        )
    for item in endpoints or ():
        if item not in legal:
            raise unknown("endpoint", item, legal)
    if output_stride not in spec.output_strides:
        raise unknown("output_stride", output_stride, spec.output_strides)


def _check_top(
    spec: ModelSpec, source: Any, include_top: bool, classes: int, activation: Any
) -> None:
    if not include_top:
        return
    if source.classes not in (None, classes):
        raise WeightsError(
            f"{source.where} classifies {source.classes} classes. Received: classes="
            f"{classes}. Pass classes={source.classes}, or include_top=False and add a "
            "classifier of your own, or weights=None."
        )
    if activation not in (None, "softmax"):
        raise ValueError(
            "With weights and include_top=True, classifier_activation must be None "
            f"or 'softmax'. Received: {activation!r}"
        )


def _outputs(
    spec: ModelSpec,
    family: Family,
    maps: dict[str, Any],
    top: _Top,
    endpoints: Sequence[str] | None,
) -> Any:
    from keras import layers

    x = maps["features"]
    if top.include:
        x = maps["logits"] = _logits(spec, family, x, top.classes)
    if endpoints is not None:
        return {key: maps[key] for key in endpoints}
    if top.include:
        if top.activation in (None, "linear"):
            return x
        return layers.Activation(top.activation, name="top_probabilities")(x)
    if top.pooling == "avg":
        return layers.GlobalAveragePooling2D(name="top_pool")(x)
    if top.pooling == "max":
        return layers.GlobalMaxPooling2D(name="top_pool")(x)
    return x


def _logits(spec: ModelSpec, family: Family, x: Any, classes: int) -> Any:
    if family.classifier is not None:
        return family.classifier(spec, x, classes)
    from keras_lightnets import layers

    x = layers.global_pool(x)
    if family.neck is not None:
        x = family.neck(spec, x)
    return layers.dense_classifier(x, classes, spec.dropout, spec.classifier_bias)
