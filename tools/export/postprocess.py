"""Append the detection post-processing op to a detector's .tflite file.

The file then ends in `TFLite_Detection_PostProcess` with its four outputs (boxes,
classes, scores, count, in this order and without a signature), which pycoral, Frigate
and the like read as they stand: they give uint8 pixels and take y1, x1, y2, x2.

Nothing is approximated. The op wants encodings as ty, tx, th, tw while the head makes
dx, dy, dw, dh, so the filters of the last box convolutions change places in the file.
8-bit outputs are turned into floats first: the op's kernel takes float and uint8 only,
and scores of 8 bits behind the softmax would leave 256 levels with many ties. That
part runs on the CPU, as suppression does everywhere. Unlike `runtime.postprocess` the
op does not clip boxes to the picture before it compares them.
"""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_lightnets import _errors
from keras_lightnets.tools import runtime
from keras_lightnets.tools.export import _flatbuffer

CUSTOM_OP = "TFLite_Detection_PostProcess"
SWAP = np.asarray([1, 0, 3, 2])
# Ops between the box convolutions and the output that keep the order of columns.
PASSING = ("RESHAPE", "CONCATENATION", "QUANTIZE", "DEQUANTIZE")
DENSE = ("CONV_2D",)


@dataclasses.dataclass(frozen=True)
class Postprocess:
    """What the op does, fixed in the file.

    Attributes:
        max_detections: Rows of the outputs.
        score_threshold: Lower scores are dropped.
        iou_threshold: Overlap above which the worse box is dropped.
        regular_nms: Suppress class by class. False, as in the detectors that Coral
            publishes: each anchor stands for its best class, and a better box of any
            class suppresses it. Class by class is wrong in LiteRT 2.3 with several
            threads: with T threads class number T is lost, so choose it only for
            clients that run one thread.
        detections_per_class: The most boxes of one class, for regular_nms.
    """

    max_detections: int = 100
    score_threshold: float = 0.01
    iou_threshold: float = 0.5
    regular_nms: bool = False
    detections_per_class: int = 100

    def __post_init__(self) -> None:
        """Refuse values the op's kernel would refuse later."""
        for name in ("max_detections", "detections_per_class"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, received {getattr(self, name)}."
                )
        if not 0 <= self.score_threshold < 1:
            raise ValueError(
                f"score_threshold must be in [0, 1), received {self.score_threshold}."
            )
        if not 0 < self.iou_threshold <= 1:
            raise ValueError(
                f"iou_threshold must be in (0, 1], received {self.iou_threshold}."
            )


def append(
    content: bytes, meta: runtime.Meta, options: Postprocess | None = None
) -> bytes:
    """Append the op to a detector with the raw outputs "boxes" and "scores".

    Args:
        content: A .tflite file with boxes (1, N, 4) and scores (1, N, columns).
        meta: Labels, anchors, score activation and box weights.
        options: Thresholds and sizes.

    Returns:
        A .tflite file with the outputs boxes (1, M, 4) y1, x1, y2, x2, classes
        (1, M), scores (1, M) and count (1,), all float32.

    Raises:
        ValueError: If the file is no such detector.

    Example:
        >>> content = append(content, meta, Postprocess(max_detections=20))
        ... # doctest: +SKIP
    """
    model, _ = _flatbuffer.load(content)
    editor = _Editor(model)
    boxes, scores = editor.find_outputs(meta)
    _swap_columns(editor, boxes)
    boxes, scores = editor.as_float(boxes), editor.as_float(scores)
    scores = editor.activate(scores, meta.scores)
    options = options or Postprocess()
    anchors = editor.constant("anchors", meta.anchors[:, SWAP].astype(np.float32))
    _add_custom(editor, [boxes, scores, anchors], meta, options)
    model.signatureDefs = None
    return _flatbuffer.pack(model)


def labels_text(labels: Sequence[str]) -> str:
    """Return the content of labels.txt as pycoral and Frigate read it.

    Args:
        labels: Class names in the order of the class numbers.

    Returns:
        One line "number name" per class.

    Raises:
        ValueError: If a name holds a line break or nothing.
    """
    for label in labels:
        if not label.strip() or len(label.splitlines()) != 1:
            raise ValueError(f"A label must be one line of text, received {label!r}.")
    return "".join(f"{number} {label}\n" for number, label in enumerate(labels))


class _Editor:
    """Adds tensors and ops to a file's first subgraph."""

    def __init__(self, model: Any):
        self.schema = _flatbuffer.schema()
        self.model = model
        self.graph = model.subgraphs[0]
        self.builtin = vars(self.schema.BuiltinOperator)
        self.types = vars(self.schema.TensorType)

    def name(self, tensor: int) -> str:
        """Name of a tensor."""
        name = self.graph.tensors[tensor].name
        return name.decode() if isinstance(name, bytes) else str(name)

    def op_name(self, op: Any) -> str:
        """Builtin name of an op."""
        return _flatbuffer.builtin_name(self.model.operatorCodes[op.opcodeIndex])

    def producer(self, tensor: int) -> Any | None:
        """The op that makes a tensor, or None."""
        for op in self.graph.operators:
            if tensor in op.outputs:
                return op
        return None

    def find_outputs(self, meta: runtime.Meta) -> tuple[int, int]:
        """Tensors of boxes and scores, by name or by shape, checked by the sidecar."""
        outputs = [int(index) for index in self.graph.outputs]
        columns = len(meta.labels) + (meta.scores == "softmax")
        wanted = {
            "boxes": (1, len(meta.anchors), 4),
            "scores": (1, len(meta.anchors), columns),
        }
        shapes = {index: tuple(self.graph.tensors[index].shape) for index in outputs}
        found = {}
        for name, shape in wanted.items():
            fitting = [index for index in outputs if shapes[index] == shape]
            named = [index for index in fitting if self.name(index) == name]
            choice = named or fitting
            if len(choice) != 1 or len(outputs) != 2:
                raise ValueError(
                    f"The file needs two outputs, boxes {wanted['boxes']} and scores "
                    f"{wanted['scores']} ({meta.scores}), but has "
                    f"{[(self.name(i), s) for i, s in shapes.items()]}."
                )
            found[name] = choice[0]
        return found["boxes"], found["scores"]

    def constant(self, name: str, values: np.ndarray, like: Any = None) -> int:
        """Add a constant tensor; `like` gives type and quantisation."""
        kind = like.type if like is not None else self.types["FLOAT32"]
        index = self.tensor(name, values.shape, kind)
        buffer = _flatbuffer.add_buffer(self.model, values.tobytes())
        self.graph.tensors[index].buffer = buffer
        if like is not None:
            self.graph.tensors[index].quantization = like.quantization
        return index

    def tensor(self, name: str, shape: Sequence[int], kind: int) -> int:
        """Add an activation tensor."""
        made = self.schema.TensorT()
        made.name, made.shape, made.type = name.encode(), list(shape), kind
        made.buffer = 0
        made.hasRank = True
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def op(self, name: str, version: int, inputs: list[int], outputs: list[int]) -> Any:
        """Add an op at the end and return it."""
        code = self.schema.OperatorCodeT()
        builtin = name in self.builtin
        code.builtinCode = self.builtin[name if builtin else "CUSTOM"]
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = version
        code.customCode = None if builtin else name.encode()
        self.model.operatorCodes.append(code)
        made = self.schema.OperatorT()
        made.opcodeIndex = len(self.model.operatorCodes) - 1
        made.inputs, made.outputs = inputs, outputs
        self.graph.operators.append(made)
        return made

    def as_float(self, tensor: int) -> int:
        """A float version of an output; a last QUANTIZE to uint8 is left out."""
        maker = self.producer(tensor)
        row = self.graph.tensors[tensor]
        if row.type == self.types["UINT8"] and maker is not None:
            before = int(maker.inputs[0])
            row_before = self.graph.tensors[before]
            if row_before.type == self.types["INT8"]:
                self.graph.operators.remove(maker)
                tensor, row = before, row_before
        if row.type == self.types["FLOAT32"]:
            return tensor
        version = {self.types["UINT8"]: 1, self.types["INT8"]: 2}.get(row.type)
        if version is None:
            raise ValueError(f"Output {self.name(tensor)} is neither float nor 8-bit.")
        name = f"{self.name(tensor)}_float"
        made = self.tensor(name, row.shape, self.types["FLOAT32"])
        self.op("DEQUANTIZE", version, [tensor], [made])
        return made

    def activate(self, tensor: int, activation: str) -> int:
        """Turn logits into probabilities, in float."""
        shape = self.graph.tensors[tensor].shape
        made = self.tensor("probabilities", shape, self.types["FLOAT32"])
        if activation == "sigmoid":
            self.op("LOGISTIC", 1, [tensor], [made])
            return made
        op = self.op("SOFTMAX", 1, [tensor], [made])
        op.builtinOptionsType = self.schema.BuiltinOptions.SoftmaxOptions
        op.builtinOptions = self.schema.SoftmaxOptionsT()
        op.builtinOptions.beta = 1.0
        return made


def _swap_columns(editor: _Editor, boxes: int) -> None:
    """Let the box convolutions make dy, dx, dh, dw."""
    open_tensors, seen = [boxes], set()
    swapped: dict[int, int] = {}
    while open_tensors:
        op = editor.producer(open_tensors.pop())
        name = "an input" if op is None else editor.op_name(op)
        if op is None or name not in (*PASSING, *DENSE):
            raise ValueError(
                "The box output must come from convolutions through reshape and "
                f"concatenation; found {name}. Build the head with heads.ssdlite."
            )
        if id(op) in seen:
            continue
        seen.add(id(op))
        if name in DENSE:
            op.inputs = [
                int(op.inputs[0]),
                *(_swapped(editor, int(t), swapped) for t in op.inputs[1:]),
            ]
        elif name == "CONCATENATION":
            _check_axis(editor, op)
            open_tensors += [int(index) for index in op.inputs]
        else:
            open_tensors.append(int(op.inputs[0]))


def _check_axis(editor: _Editor, op: Any) -> None:
    rank = len(editor.graph.tensors[int(op.outputs[0])].shape)
    if op.builtinOptions.axis % rank == rank - 1:
        raise ValueError(
            "The box output joins columns; only joining anchors (axis 1) is known."
        )


def _swapped(editor: _Editor, tensor: int, done: dict[int, int]) -> int:
    """A copy of weights or bias with the output channels x, y, w, h swapped."""
    if tensor < 0:
        return tensor
    if tensor in done:
        return done[tensor]
    row = editor.graph.tensors[tensor]
    maker = editor.producer(tensor)
    if maker is not None and editor.op_name(maker) == "DEQUANTIZE":
        # float16 files keep the weights behind a conversion.
        maker.inputs = [_swapped(editor, int(maker.inputs[0]), done)]
        done[tensor] = tensor
        return tensor
    data = editor.model.buffers[row.buffer].data
    if data is None or len(data) == 0 or int(row.shape[0]) % 4:
        raise ValueError(
            f"The box convolution's {editor.name(tensor)} of shape {list(row.shape)} "
            "is not a constant with 4 channels per anchor."
        )
    channels = int(row.shape[0])
    order = (np.arange(0, channels, 4)[:, None] + SWAP).reshape(-1)
    values = np.asarray(data, np.uint8).reshape(channels, -1)[order]
    made = editor.constant(editor.name(tensor), values, row)
    copy = editor.graph.tensors[made]
    copy.shape = list(row.shape)
    copy.quantization = _swapped_scales(editor, row.quantization, order)
    done[tensor] = made
    return made


def _swapped_scales(editor: _Editor, params: Any, order: np.ndarray) -> Any:
    if params is None or params.scale is None or len(params.scale) < 2:
        return params
    copy = editor.schema.QuantizationParametersT()
    for key, value in vars(params).items():
        setattr(copy, key, value)
    for key in ("scale", "zeroPoint", "min", "max"):
        value = getattr(params, key)
        if value is not None and len(value) == len(order):
            setattr(copy, key, np.asarray(value)[order])
    return copy


def _add_custom(
    editor: _Editor, inputs: list[int], meta: runtime.Meta, options: Postprocess
) -> None:
    rows, kind = options.max_detections, editor.types["FLOAT32"]
    shapes = ((1, rows, 4), (1, rows), (1, rows), (1,))
    outputs = [
        editor.tensor(CUSTOM_OP + (f":{k}" if k else ""), shape, kind)
        for k, shape in enumerate(shapes)
    ]
    op = editor.op(CUSTOM_OP, 1, inputs, outputs)
    x_scale, y_scale, w_scale, h_scale = meta.box_weights
    flexbuffers = importlib.import_module("flatbuffers.flexbuffers")
    attributes = {
        "max_detections": options.max_detections,
        "max_classes_per_detection": 1,
        "detections_per_class": options.detections_per_class,
        "use_regular_nms": options.regular_nms,
        "nms_score_threshold": options.score_threshold,
        "nms_iou_threshold": options.iou_threshold,
        "num_classes": len(meta.labels),
        "y_scale": y_scale,
        "x_scale": x_scale,
        "h_scale": h_scale,
        "w_scale": w_scale,
    }
    op.customOptions = np.frombuffer(flexbuffers.Dumps(attributes), np.uint8)
    editor.graph.outputs = outputs


def sidecar(meta: runtime.Meta) -> runtime.Meta:
    """Return the sidecar of the file with the op: outputs by place, no anchors."""
    places = {name: at for at, name in enumerate(runtime.DETECTION_OUTPUTS)}
    anchors = np.zeros((0, 4), np.float32)
    return dataclasses.replace(meta, anchors=anchors, outputs=places)


def compare(
    raw: bytes, content: bytes, meta: runtime.Meta, pictures: Sequence[np.ndarray]
) -> Mapping[str, float]:
    """Run a file with the op against numpy decoding of the file without it.

    Args:
        raw: The file before `append`.
        content: The file after `append`.
        meta: The sidecar of `raw`.
        pictures: (height, width, 3) pictures of the network's size, 0..255.

    Returns:
        "detections" compared, "unmatched" without a partner of the same class and
        score, and "max_box_error" in shares of the picture's sides.

    Raises:
        ValueError: If there are no pictures.
    """
    if not len(pictures):
        raise ValueError("Comparing needs at least one picture.")
    settings = options_of(content)
    plain, finished = runtime.TFLiteModel(raw), runtime.TFLiteModel(content)
    total = unmatched = 0
    worst = 0.0
    for picture in pictures:
        outputs = plain.run(picture[None])
        by_name = dict(zip((r["name"] for r in plain.outputs), outputs, strict=True))
        ours = _expected(by_name["boxes"][0], by_name["scores"][0], meta, settings)
        boxes, classes, scores, count = finished.run(picture[None])
        rows = int(count[0])
        labels = classes[0, :rows].astype(np.int32)
        theirs = runtime.Detections(boxes[0, :rows][:, SWAP], scores[0, :rows], labels)
        total += max(rows, len(ours.scores))
        lost, error = _match(ours, theirs)
        unmatched, worst = unmatched + lost, max(worst, error)
    return {
        "detections": total,
        "unmatched": unmatched,
        "max_box_error": worst,
    }


def _expected(
    boxes: np.ndarray, scores: np.ndarray, meta: runtime.Meta, options: Postprocess
) -> runtime.Detections:
    """What the op should give, from the raw outputs, in numpy; no box is clipped."""
    boxes = runtime.decode_boxes(boxes, meta.anchors, meta.box_weights)
    values = runtime.class_scores(scores, meta.scores)
    labels = [values.argmax(1)]
    most = options.max_detections
    if options.regular_nms:
        labels = [np.full(len(boxes), label) for label in range(len(meta.labels))]
        most = options.detections_per_class
    pairs = []
    for label in labels:
        column = values[np.arange(len(boxes)), label]
        able = np.flatnonzero(column >= options.score_threshold)
        kept = able[runtime.nms(boxes[able], column[able], options.iou_threshold)]
        pairs.append(np.stack([kept, label[kept]])[:, :most])
    row, number = np.concatenate(pairs, 1)
    best = np.argsort(-values[row, number], kind="stable")[: options.max_detections]
    row, number = row[best], number[best]
    return runtime.Detections(boxes[row], values[row, number], number)


def _match(
    ours: runtime.Detections, theirs: runtime.Detections, tolerance: float = 1e-4
) -> tuple[int, float]:
    """Pair detections of the same class and score by the nearest box."""
    free = list(range(len(theirs.scores)))
    lost, worst = 0, 0.0
    for box, score, label in zip(ours.boxes, ours.scores, ours.labels, strict=True):
        near = [
            k
            for k in free
            if theirs.labels[k] == label
            and abs(theirs.scores[k] - score) <= tolerance
            and np.abs(theirs.boxes[k] - box).max() <= 1e-3
        ]
        if not near:
            lost += 1
            continue
        errors = [float(np.abs(theirs.boxes[k] - box).max()) for k in near]
        best = int(np.argmin(errors))
        worst = max(worst, errors[best])
        free.remove(near[best])
    return lost + len(free), worst


def options_of(content: bytes) -> Postprocess:
    """Read the op's options back from a file.

    Raises:
        ValueError: If the file does not end in the op.
    """
    model, _ = _flatbuffer.load(content)
    editor = _Editor(model)
    op = editor.producer(int(editor.graph.outputs[0]))
    if op is None or op.customOptions is None:
        raise ValueError(
            f"The file does not end in {CUSTOM_OP}; its outputs are "
            f"{[editor.name(int(i)) for i in editor.graph.outputs]}."
        )
    flexbuffers = _errors.require("flatbuffers.flexbuffers", "litert")
    held = flexbuffers.Loads(bytes(bytearray(op.customOptions)))
    return Postprocess(
        max_detections=held["max_detections"],
        score_threshold=held["nms_score_threshold"],
        iou_threshold=held["nms_iou_threshold"],
        detections_per_class=held["detections_per_class"],
        regular_nms=bool(held["use_regular_nms"]),
    )
