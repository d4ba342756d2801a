"""From options to a network: head, head's config, backbone and head joined."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pydantic

from keras_lightnets.tasks.config import ConfigError, TaskConfig, explain


def find_head(task: str, name: str) -> Any:
    """Return a head's entry in `heads.HEADS`.

    Args:
        task: "detect" or "segment".
        name: Name of the head.

    Returns:
        The entry.

    Raises:
        ConfigError: If the task has no such head; the closest name is suggested.
    """
    from keras_lightnets import heads
    from keras_lightnets._errors import unknown

    legal = heads.for_task(task)
    if name not in legal:
        raise ConfigError(str(unknown("head", name, legal)))
    return legal[name]


def head_config(head: Any, values: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Return the config of a head.

    Args:
        head: Its entry in `heads.HEADS`.
        values: What the task sets.
        given: `head_options` of the user; they win.

    Returns:
        The config.

    Raises:
        ConfigError: If an option is unknown or has an illegal value.
    """
    from keras_lightnets._errors import unknown

    kind = head.config
    legal = [field.name for field in dataclasses.fields(kind)]
    for key in given:
        if key not in legal:
            raise ConfigError(str(unknown("option of the head", key, legal)))
    try:
        return pydantic.TypeAdapter(kind).validate_python(
            {**values, **head.defaults, **given}
        )
    except pydantic.ValidationError as error:
        raise ConfigError(explain(error, " of head_options")) from error


def create_network(config: TaskConfig, **fixed: Any) -> Any:
    """Create the network that the options name.

    Args:
        config: Name, weights, input size and changes of the network.
        **fixed: Further arguments of `create_model`.

    Returns:
        A `keras.Model`.

    Raises:
        ConfigError: If `backbone_options` holds what the task itself sets.
    """
    from keras_lightnets import create_model

    fixed = {"weights": config.weights, "input_shape": (*config.size, 3), **fixed}
    taken = [key for key in config.backbone_options if key in fixed]
    if taken:
        raise ConfigError(
            'backbone_options are changes of the network, such as {"width": 0.5}; '
            f"{', '.join(fixed)} are set by the task and its own options. Received: "
            f"{', '.join(taken)}. Leave it out."
        )
    return create_model(config.backbone, **fixed, **config.backbone_options)


def build_dense(
    config: TaskConfig, head: str, chosen: Any, name: str, output_stride: int = 32
) -> Any:
    """Build backbone and head as one flat graph.

    Args:
        config: Network, input size, precision and what is frozen.
        head: Name in `heads.HEADS`.
        chosen: The head's config.
        name: Name of the model.
        output_stride: The backbone's.

    Returns:
        A `keras.Model` from RGB images of 0..255 to the head's raw outputs.

    Raises:
        ValueError: If an option is not legal; the legal values are listed.
    """
    from keras_lightnets import get_spec, heads
    from keras_lightnets.tasks import loop

    levels = [level.name for level in get_spec(config.backbone).levels]
    endpoints = heads.pick_endpoints(head, levels)
    frozen = config.freeze or ""
    if frozen in levels and frozen not in endpoints:
        endpoints = (frozen, *endpoints)
    with loop.precision(config.precision):
        backbone = create_network(
            config,
            include_top=False,
            endpoints=endpoints,
            output_stride=output_stride,
        )
        model = heads.attach(backbone, head, chosen, name=name)
    loop.set_norm_momentum(model, config.bn_momentum)
    loop.freeze(backbone, config.freeze, config.freeze_bn)
    return model
