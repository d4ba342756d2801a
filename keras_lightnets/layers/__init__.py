"""Building blocks: functions on tensors made of plain Keras layers.

Names resolve on first use, so a backbone file can import this package without
loading keras (`keras-lightnets list` reads specs only).
"""

import importlib
from typing import Any

_MODULES = {
    "BatchNormalization": "norm",
    "Bottleneck": "inverted",
    "Conv2D": "conv2d",
    "Condensation": "learned_group",
    "LearnedGroupConv2D": "learned_group",
    "Generated": "weightnet",
    "SampleConv2D": "weightnet",
    "SelectChannels": "select",
    "activate": "conv",
    "adaptive_pool": "pool",
    "add": "conv",
    "avg_pool": "pool",
    "avg_pool_up": "pool",
    "channel_pad": "channels",
    "channel_slice": "channels",
    "channel_shuffle": "shuffle",
    "channel_split": "shuffle",
    "channelwise_classifier": "channelwise",
    "channelwise_conv": "channelwise",
    "fused_pyramid": "dilated",
    "fused_residual": "fused",
    "BlurPool": "blur",
    "bias_conv": "conv",
    "blur_pool": "blur",
    "concat": "conv",
    "conv_bn": "conv",
    "conv_classifier": "conv",
    "convolve_groups": "conv2d",
    "depthwise_bn": "conv",
    "dilated_depthwise": "dilated",
    "drop": "conv",
    "eca_kernel": "attention",
    "efficient_attention": "attention",
    "selective_kernel": "attention",
    "residual": "conv",
    "Spatial": "residual_units",
    "plain_spatial": "residual_units",
    "residual_network": "residual_units",
    "residual_stem": "residual_units",
    "residual_unit": "residual_units",
    "DilatedStride": "stride",
    "dense_classifier": "conv",
    "ghost_neck": "ghost",
    "ghost_stages": "ghost",
    "global_max_pool": "conv",
    "global_pool": "conv",
    "hidden_classifier": "conv",
    "inverted_residual": "inverted",
    "inverted_stages": "inverted",
    "dynamic_shift_max": "shift_max",
    "learned_group_conv": "learned_group",
    "LocalResponseNormalization": "response",
    "local_response": "response",
    "max_pool": "pool",
    "mgic_block": "mgic",
    "mgic_grids": "mgic",
    "multi_scale": "multiscale",
    "normalise": "conv",
    "pad_for": "pad",
    "padded_conv": "conv",
    "padded_depthwise": "conv",
    "diverse_branches": "reparam",
    "diverse_spatial": "reparam",
    "rep_conv": "reparam",
    "separable_conv": "separable",
    "separable_conv_bn": "separable",
    "valid_conv_bn": "separable",
    "centred_max_pool": "separable",
    "resample": "resampling",
    "spatial_pyramid": "esp",
    "split_depthwise": "dilated",
    "squeeze_excite": "squeeze",
    "thinned": "stride",
    "weightnet_conv": "weightnet",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import the module that defines a block on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'keras_lightnets.layers' has no block {name!r}")
    module = importlib.import_module(f"keras_lightnets.layers.{_MODULES[name]}")
    return getattr(module, name)
