"""TFLite metadata: labels and normalisation inside the file, as MediaPipe reads them.

A buffer named TFLITE_METADATA describes inputs and outputs, and labels.txt is appended
as a zip archive. MediaPipe's own writer needs all of MediaPipe to be installed, so the
few tables are written here; the schema is TFLite's (identifier M001).

| task | what MediaPipe makes of the file |
|---|---|
| classify | ImageClassifier; scores are the file's logits, in the right order |
| detect | ObjectDetector, where the file ends in the detection op |
| segment | ImageSegmenter; the softmax over the classes is left to it |
"""

import importlib
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_lightnets.tools.export import _flatbuffer

BUFFER = "TFLITE_METADATA"
LABELS_FILE = "labels.txt"
RGB, GRAYSCALE, SOFTMAX = 1, 2, 2
AXIS_LABELS, VALUE_LABELS = 2, 3
FEATURE, IMAGE, BOX = 1, 2, 3
NORMALISATION = 1
# Fields in the schema's order; a union takes two places, its type first.
TABLES: Mapping[str, tuple[str, ...]] = {
    "ModelMetadata": (
        *("name", "description", "version", "subgraph_metadata", "author"),
        *("license", "associated_files", "min_parser_version"),
    ),
    "SubGraphMetadata": (
        *("name", "description", "input_tensor_metadata", "output_tensor_metadata"),
        *("associated_files", "input_process_units", "output_process_units"),
        *("input_tensor_groups", "output_tensor_groups", "custom_metadata"),
    ),
    "TensorMetadata": (
        *("name", "description", "dimension_names", "content", "process_units"),
        *("stats", "associated_files"),
    ),
    "TensorGroup": ("name", "tensor_names"),
    "AssociatedFile": ("name", "description", "type"),
    "Content": ("properties_type", "properties", "range"),
    "FeatureProperties": (),
    "ImageProperties": ("color_space",),
    "BoundingBoxProperties": ("index", "type", "coordinate_type"),
    "ValueRange": ("min", "max"),
    "ProcessUnit": ("options_type", "options"),
    "NormalizationOptions": ("mean", "std"),
    "Stats": ("max", "min"),
    "CustomMetadata": ("name", "data"),
    "ImageSegmenterOptions": ("activation", "min_parser_version"),
}
BYTES: tuple[str, ...] = ("properties_type", "options_type", "type", "activation")
BYTES += ("coordinate_type", "color_space")

Table = tuple[str, Mapping[str, Any]]


def attach(content: bytes, meta: Any) -> bytes:
    """Write a file's labels and normalisation into it.

    Args:
        content: A .tflite file with the outputs of the task; it reads grey levels of
            0-255 and normalises them itself, so that the normalisation named in the
            metadata changes nothing.
        meta: The sidecar, `runtime.Meta` or `runtime_labels.LabelMeta`.

    Returns:
        The file with the metadata; it runs as before. Of a task that is not in
        DESCRIBE, as MediaPipe has none of its kind, the file as it is.

    Raises:
        ValueError: If it is not a TFLite file.
    """
    task = meta.to_dict()["task"]
    if task not in DESCRIBE:
        return content
    model, _ = _flatbuffer.load(content)
    graph = model.subgraphs[0]
    names = [graph.tensors[int(i)].name for i in graph.outputs]
    texts = [n.decode() if isinstance(n, bytes) else str(n) for n in names]
    described = DESCRIBE[task](texts)
    sub = _table("SubGraphMetadata", input_tensor_metadata=[_image()], **described)
    whole = _table(
        "ModelMetadata",
        name=f"keras_lightnets {task}",
        subgraph_metadata=[sub],
        min_parser_version="1.0.0",
    )
    schema = _flatbuffer.schema()
    entry = schema.MetadataT()
    entry.name = BUFFER
    entry.buffer = _flatbuffer.add_buffer(model, _pack(whole, b"M001"))
    model.metadata = [*(model.metadata or []), entry]
    return _with_labels(_flatbuffer.pack(model), meta.labels)


def _with_labels(content: bytes, labels: Sequence[str]) -> bytes:
    """Append the label file; its date is fixed so that equal models are equal."""
    whole = io.BytesIO(content)
    with zipfile.ZipFile(whole, "a") as archive:
        entry = zipfile.ZipInfo(LABELS_FILE, (1980, 1, 1, 0, 0, 0))
        archive.writestr(entry, "\n".join(labels) + "\n")
    return whole.getvalue()


def _table(kind: str, **fields: Any) -> Table:
    return kind, fields


def _image() -> Table:
    """The input: RGB, 0-255, as it is."""
    unchanged = _table("NormalizationOptions", mean=_floats(0), std=_floats(1))
    unit = _table("ProcessUnit", options_type=NORMALISATION, options=unchanged)
    picture = _table("ImageProperties", color_space=RGB)
    return _table(
        "TensorMetadata",
        name="image",
        description="RGB picture, 0-255",
        content=_table("Content", properties_type=IMAGE, properties=picture),
        process_units=[unit],
        stats=_table("Stats", max=_floats(255), min=_floats(0)),
    )


def _floats(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32)


def _labels(kind: int) -> list[Table]:
    return [_table("AssociatedFile", name=LABELS_FILE, type=kind)]


def _scores(names: Sequence[str]) -> dict[str, Any]:
    features = _table("FeatureProperties")
    output = _table(
        "TensorMetadata",
        name=names[0],
        description="one logit per class",
        content=_table("Content", properties_type=FEATURE, properties=features),
        associated_files=_labels(AXIS_LABELS),
    )
    return {"output_tensor_metadata": [output]}


def _map(names: Sequence[str]) -> dict[str, Any]:
    grey = _table("ImageProperties", color_space=GRAYSCALE)
    content = _table(
        "Content",
        properties_type=IMAGE,
        properties=grey,
        range=_table("ValueRange", min=1, max=2),
    )
    output = _table(
        "TensorMetadata",
        name=names[0],
        description="one logit per pixel and class",
        content=content,
        associated_files=_labels(AXIS_LABELS),
    )
    options = _table(
        "ImageSegmenterOptions", activation=SOFTMAX, min_parser_version="1.0.0"
    )
    custom = _table(
        "CustomMetadata", name="SEGMENTER_METADATA", data=_pack(options, b"V001")
    )
    return {"output_tensor_metadata": [output], "custom_metadata": [custom]}


def _detections(names: Sequence[str]) -> dict[str, Any]:
    """The four outputs of the detection op, or raw ones, which MediaPipe refuses."""
    if len(names) != 4:
        raw = [_table("TensorMetadata", name=name) for name in names]
        return {
            "output_tensor_metadata": raw,
            "associated_files": _labels(VALUE_LABELS),
        }
    # The op's order is y1, x1, y2, x2 and MediaPipe's x1, y1, x2, y2.
    boxes = _table(
        "BoundingBoxProperties",
        index=np.asarray([1, 0, 3, 2], np.uint32),
        type=1,
        coordinate_type=0,
    )
    per_box = _table("ValueRange", min=2, max=2)
    features = _table("FeatureProperties")
    contents: list[dict[str, Any]] = [
        {"properties_type": BOX, "properties": boxes, "range": per_box},
        {"properties_type": FEATURE, "properties": features, "range": per_box},
        {"properties_type": FEATURE, "properties": features, "range": per_box},
        {"properties_type": FEATURE, "properties": features},
    ]
    titles = ("location", "category", "score", "number of detections")
    outputs = [
        _table("TensorMetadata", name=title, content=_table("Content", **content))
        for title, content in zip(titles, contents, strict=True)
    ]
    outputs[1][1]["associated_files"] = _labels(VALUE_LABELS)  # type: ignore[index]
    group = _table(
        "TensorGroup", name="detection_result", tensor_names=list(titles[:3])
    )
    return {"output_tensor_metadata": outputs, "output_tensor_groups": [group]}


DESCRIBE: Mapping[str, Callable[[Sequence[str]], dict[str, Any]]] = {
    "classify": _scores,
    "segment": _map,
    "detect": _detections,
}


def _pack(table: Table, identifier: bytes) -> bytes:
    flatbuffers = importlib.import_module("flatbuffers")
    builder = flatbuffers.Builder(1024)
    builder.Finish(_write(builder, table), identifier)
    return bytes(builder.Output())


def _write(builder: Any, table: Table) -> Any:
    """Write a table behind what it refers to."""
    kind, fields = table
    order = TABLES[kind]
    held = {
        name: _reference(builder, value)
        for name, value in fields.items()
        if not isinstance(value, int)
    }
    builder.StartObject(len(order))
    for name, value in fields.items():
        slot = order.index(name)
        if name in held:
            builder.PrependUOffsetTRelativeSlot(slot, held[name], 0)
        elif name in BYTES:
            builder.PrependInt8Slot(slot, value, 0)
        else:
            builder.PrependInt32Slot(slot, value, 0)
    return builder.EndObject()


def _reference(builder: Any, value: Any) -> Any:
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, bytes):
        return builder.CreateByteVector(value)
    if isinstance(value, np.ndarray):
        return builder.CreateNumpyVector(value)
    if isinstance(value, tuple):
        return _write(builder, value)
    rows = [_reference(builder, row) for row in value]
    builder.StartVector(4, len(rows), 4)
    for row in reversed(rows):
        builder.PrependUOffsetTRelative(row)
    return builder.EndVector()
