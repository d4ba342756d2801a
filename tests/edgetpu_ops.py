"""Ops as the Edge TPU verdict reads them, refused and mapped ones."""


def tensor(shape, dtype="INT8", **more):
    scaled = dtype in ("INT8", "UINT8")
    return {"dtype": dtype, "shape": list(shape), "nscale": int(scaled), **more}


def constant(*value, dtype="INT32"):
    return tensor([len(value)], dtype, const=True, value=list(value))


def op(name, inputs, outputs, version=1, chain=(0, 1), **attrs):
    """One op that takes tensor `chain[0]` and makes tensor `chain[1]`."""
    places = [chain[0]] + [1000 + chain[0] * 10 + k for k in range(len(inputs) - 1)]
    return {
        "op": name,
        "version": version,
        "attrs": attrs,
        "inputs": inputs,
        "outputs": outputs,
        "in_ids": places,
        "out_ids": [chain[1] + k for k in range(len(outputs))],
    }


def conv(chain, taken=8, version=3, dtype="INT8", kernel=(1, 1), **attrs):
    image = tensor([1, 8, 8, 8], dtype)
    weights = tensor([8, *kernel, taken], const=True)
    bias = tensor([8], "INT32", const=True)
    return op(
        "CONV_2D",
        [image, weights, bias],
        [tensor([1, 8, 8, 8], dtype)],
        version,
        chain,
        **{"dilationWFactor": 1, "dilationHFactor": 1, **attrs},
    )


def chain_of(*names):
    """Ops one behind the other on the same map."""
    return [
        conv((k, k + 1)) if name == "CONV_2D" else op(name, [MAP], [MAP], 1, (k, k + 1))
        for k, name in enumerate(names)
    ]


MAP = tensor([1, 8, 8, 8])
REFUSED = {
    "unknown op": (op("HARD_SWISH", [MAP], [MAP]), "Operation not supported"),
    "version": (conv((0, 1), version=6), "version 6, seen mapped up to 3: unknown"),
    "float": (conv((0, 1), dtype="FLOAT32"), "unsupported data type: FLOAT32"),
    "int16": (conv((0, 1), dtype="INT16"), "unsupported data type: INT16"),
    "grouped": (conv((0, 1), taken=4), "grouped convolution, 2 groups"),
    "dilation": (conv((0, 1), kernel=(3, 3), dilationWFactor=2), "dilation differs"),
    "computed weights": (
        op("CONV_2D", [MAP, tensor([1, 1, 1, 8])], [MAP]),
        "weights are not constant",
    ),
    "fused pool": (
        op("MAX_POOL_2D", [MAP], [MAP], fusedActivationFunction="RELU"),
        "fused RELU",
    ),
    "constant part": (
        op("CONCATENATION", [MAP, tensor([1, 8, 8, 8], const=True)], [MAP]),
        "not zero padding",
    ),
    "wide dense": (
        op("FULLY_CONNECTED", [MAP, tensor([4, 8], const=True)], [tensor([9, 4])]),
        "not 1-D",
    ),
    "kept dimensions": (
        op(
            "FULLY_CONNECTED",
            [MAP, tensor([4, 8], const=True)],
            [tensor([1, 4])],
            keepNumDims=True,
        ),
        "keep_num_dims",
    ),
    "wide softmax": (
        op("SOFTMAX", [tensor([1, 9, 4])], [tensor([1, 9, 4])]),
        "not 1-D",
    ),
    "large softmax": (
        op("SOFTMAX", [tensor([1, 16385])], [tensor([1, 16385])]),
        "mapped up to 16,384",
    ),
    "batch mean": (op("MEAN", [MAP, constant(0)], [MAP]), "over the batch"),
    "channel mean": (
        op("MEAN", [tensor([1, 8, 8, 6]), constant(-1)], [MAP]),
        "6 channels",
    ),
    "large mean": (
        op("MEAN", [tensor([1, 256, 128, 3]), constant(1, 2)], [MAP]),
        "over 32768 positions",
    ),
    "long paddings": (
        op("PAD", [MAP, constant(*[0] * 8, dtype="INT64")], [MAP]),
        "INT64",
    ),
    "batch padding": (op("PAD", [MAP, constant(1, *[0] * 7)], [MAP]), "pads the batch"),
    "per-pixel alpha": (
        op("PRELU", [MAP, tensor([8, 8, 8], const=True)], [MAP]),
        "not 1-D",
    ),
    "large growth": (
        op(
            "RESIZE_BILINEAR",
            [tensor([1, 33, 33, 8]), constant(513, 513)],
            [tensor([1, 513, 513, 8])],
        ),
        "run precisely enough",
    ),
    "newer nearest": (
        op("RESIZE_NEAREST_NEIGHBOR", [MAP, constant(16, 16)], [MAP], version=3),
        "Operation version not supported",
    ),
    "strides": (
        op("STRIDED_SLICE", [MAP, *[constant(0)] * 2, constant(2)], [MAP]),
        "all must be 1",
    ),
    "new axis": (
        op("STRIDED_SLICE", [MAP, *[constant(1)] * 3], [MAP], newAxisMask=1),
        "new axis",
    ),
    "channels moved": (
        op("TRANSPOSE", [MAP, constant(0, 3, 1, 2)], [MAP]),
        "moves the channels",
    ),
    "five dimensions": (
        op("RESHAPE", [MAP, constant(1)], [tensor([1, 8, 8, 2, 4])]),
        "unsupported rank",
    ),
    "no scale": (op("ADD", [tensor([4], nscale=0)], [MAP]), "Model not quantized"),
    "custom": (
        op("CUSTOM:TFLite_Detection_PostProcess", [MAP], [tensor([1], "FLOAT32")]),
        "not supported: TFLite_Detection_PostProcess",
    ),
    "time first": (
        op("UNIDIRECTIONAL_SEQUENCE_LSTM", [MAP], [MAP], timeMajor=True),
        "time first",
    ),
    "batch split": (
        op("SPLIT", [constant(0), MAP], [MAP, MAP], 2),
        "splits the batch",
    ),
    "batch packed": (op("PACK", [MAP], [MAP], axis=0), "packs the batch"),
    "large tile": (op("TILE", [MAP, constant(1, 2, 2, 1)], [MAP]), "only a 1x1 map"),
}

MAPPED = {
    "1-D dilation": conv((0, 1), kernel=(3, 1), dilationWFactor=2),
    "split in one": op("SPLIT", [constant(0), MAP], [MAP], 2),
    "requantise": op("QUANTIZE", [MAP], [tensor([1, 8, 8, 8], "UINT8")], 2),
    "softmax": op("SOFTMAX", [tensor([1, 16384])], [tensor([1, 16384])], 2),
    "transpose": op("TRANSPOSE", [MAP, constant(0, 2, 1, 3)], [MAP]),
    "zero part": op(
        "CONCATENATION",
        [MAP, tensor([1, 1, 1, 2], const=True, value=[0, 0])],
        [tensor([1, 8, 8, 10])],
    ),
    "doubling": op(
        "RESIZE_BILINEAR", [MAP, constant(16, 16)], [tensor([1, 16, 16, 8])], 3
    ),
    "small mean": op("MEAN", [MAP, constant(1, 2)], [tensor([1, 8])]),
    "tile": op("TILE", [tensor([1, 1, 1, 8]), constant(1, 8, 8, 1)], [MAP]),
}
