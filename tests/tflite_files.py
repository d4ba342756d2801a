"""Small .tflite files written by hand: no TensorFlow, any operator, any damage."""

import dataclasses

import numpy as np

from keras_lightnets.tools.export import _flatbuffer


@dataclasses.dataclass
class Plan:
    """A graph in the making; `add` returns the new tensor's position."""

    tensors: list = dataclasses.field(default_factory=list)
    ops: list = dataclasses.field(default_factory=list)
    ends: list = dataclasses.field(default_factory=list)

    def add(self, shape, dtype="INT8", scale=0.05, zero=0, values=None, **more):
        self.tensors.append((shape, dtype, scale, zero, values, more))
        return len(self.tensors) - 1

    def op(self, name, inputs, outputs, version=1, custom="", **options):
        self.ops.append((name, inputs, outputs, version, custom, options))
        return outputs[0]

    def file(self, inputs, outputs):
        """Return the content of the file."""
        schema = _flatbuffer.schema()
        model = schema.ModelT()
        model.version = 3
        model.buffers = [schema.BufferT()]
        plan = schema.SubGraphT()
        plan.tensors = [
            self._tensor(schema, model, k) for k in range(len(self.tensors))
        ]
        model.operatorCodes, plan.operators = [], []
        for name, given, made, version, custom, options in self.ops:
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, name)
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            code.version, code.customCode = version, custom or None
            model.operatorCodes.append(code)
            row = schema.OperatorT()
            row.opcodeIndex = len(model.operatorCodes) - 1
            row.inputs, row.outputs = list(given), list(made)
            if options:
                kind = options.pop("kind")
                row.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
                row.builtinOptions = getattr(schema, f"{kind}T")()
                vars(row.builtinOptions).update(options)
            plan.operators.append(row)
        plan.inputs, plan.outputs = list(inputs), list(outputs)
        model.subgraphs = [plan]
        return _flatbuffer.pack(model)

    def _tensor(self, schema, model, index):
        shape, dtype, scale, zero, values, more = self.tensors[index]
        row = schema.TensorT()
        row.name, row.shape = more.get("name", f"t{index}"), list(shape)
        row.type = getattr(schema.TensorType, dtype)
        if more.get("open"):
            row.shapeSignature = [-1] * 3 + list(shape[3:])
        if scale and dtype in ("INT8", "UINT8", "INT16") or dtype == "INT32" and scale:
            row.quantization = schema.QuantizationParametersT()
            row.quantization.scale, row.quantization.zeroPoint = [scale], [zero]
        if values is not None:
            buffer = schema.BufferT()
            data = np.ascontiguousarray(values, dtype.lower()).reshape(shape)
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            model.buffers.append(buffer)
            row.buffer = len(model.buffers) - 1
        return row


def conv(size=8, channels=4, dtype="INT8", tail=(), open=False):
    """A convolution of a (size, size, 3) picture, then ops `tail`(plan, at, shape).

    Args:
        size: Side of the picture.
        channels: Output channels.
        dtype: INT8, or FLOAT32 for a float graph.
        tail: Functions that add an op and return tensor and shape.
        open: Whether the picture's sizes are open.
    """
    random, plan = np.random.default_rng(0), Plan()
    whole = dtype == "INT8"
    step = (lambda value: value) if whole else (lambda _: 0)
    image = plan.add((1, size, size, 3), dtype, step(1.0), -128 * whole, open=open)
    kernel = random.integers(-127, 128, (channels, 3, 3, 3))
    weights = plan.add(kernel.shape, dtype, step(0.001), 0, kernel)
    bias = plan.add(
        (channels,), "INT32" if whole else dtype, step(0.001), 0, [1] * channels
    )
    at, shape = plan.add((1, size, size, channels), dtype, step(0.5)), None
    shape = (1, size, size, channels)
    plan.op(
        "CONV_2D",
        [image, weights, bias],
        [at],
        3 if whole else 1,
        kind="Conv2DOptions",
        strideW=1,
        strideH=1,
        dilationWFactor=1,
        dilationHFactor=1,
    )
    for add in tail:
        at, shape = add(plan, at, shape)
    return plan.file([image], plan.ends or [at])


def tile(plan, at, shape):
    """Repeat a map twice in height and width."""
    wide = (1, 2 * shape[1], 2 * shape[2], shape[3])
    times = plan.add((4,), "INT32", 0, 0, [1, 2, 2, 1])
    made = plan.add(wide, "INT8", 0.5)
    plan.op("TILE", [at, times], [made])
    return made, wide


def softmax(plan, at, shape):
    """Softmax over the last axis."""
    made = plan.add(shape, "INT8", 1 / 256, -128)
    plan.op("SOFTMAX", [at], [made], 2, kind="SoftmaxOptions", beta=1.0)
    return made, shape


def mean(plan, at, shape):
    """Mean over height and width: (1, channels)."""
    axes = plan.add((2,), "INT32", 0, 0, [1, 2])
    made = plan.add((1, shape[3]), "INT8", 0.5)
    plan.op("MEAN", [at, axes], [made], 2, kind="ReducerOptions", keepDims=False)
    return made, (1, shape[3])


def boxes_and_scores(plan, at, shape):
    """Two outputs named as a detector's; both hold the map's values."""
    flat, made = (1, shape[1] * shape[2], shape[3]), []
    for name in ("boxes", "scores"):
        sizes = plan.add((3,), "INT32", 0, 0, flat)
        made.append(plan.add(flat, "INT8", 0.5, name=name))
        plan.op("RESHAPE", [at, sizes], [made[-1]])
    plan.ends = made
    return made[0], flat


def custom(name):
    """A custom op of a name."""

    def add(plan, at, shape):
        made = plan.add(shape, "INT8", 0.5)
        plan.op("CUSTOM", [at], [made], custom=name)
        return made, shape

    return add
