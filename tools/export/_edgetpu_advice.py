"""What to do about an operator that the Edge TPU compiler leaves on the CPU."""

import dataclasses

SOURCES = {
    "T": "Axis ARTPEC-7 copy of Coral's operator table (developer.axis.com)",
    "O": "older copy of Coral's operator table (dgist-datalab README)",
    "C": "google-coral/edgetpu CHANGES.md",
    "G": "seen in compiled files of google-coral/test_data and others",
    "I": "google-coral/edgetpu issues",
    "V": "the version that gave the operator int8 kernels in TFLite's op_version.cc",
    "R": "recalled from coral.ai, not read again",
    "E": "an identity: same values in float",
    "W": "tools.export.lower rewrites it, exactly: export with --format edgetpu",
}


@dataclasses.dataclass(frozen=True)
class Advice:
    """What to change so that an op is mapped, and where that is known from.

    Attributes:
        text: The change.
        source: Keys of `SOURCES`.
    """

    text: str
    source: str

    def __str__(self) -> str:
        return f"{self.text} [{self.source}]"


INSTEAD: dict[str, Advice] = {
    "ABS": Advice("MAXIMUM of x and -x", "E"),
    "ARG_MAX": Advice("leave it out and take it on the CPU, last of all", "G"),
    "ARG_MIN": Advice("leave it out and take it on the CPU, last of all", "G"),
    "BATCH_MATMUL": Advice("FULLY_CONNECTED where one side is constant", "T"),
    "BROADCAST_TO": Advice("let ADD or MUL broadcast", "E"),
    "CAST": Advice("keep 8 bits from end to end; cast on the CPU", "G"),
    "DEQUANTIZE": Advice("int8 or uint8 outputs; scale them on the CPU", "G"),
    "DIV": Advice("MUL by the reciprocal of a constant", "E"),
    "ELU": Advice("train with RELU or RELU6", "T"),
    "EXP": Advice("leave it out and take it on the CPU from the logits", "T"),
    "GATHER": Advice("SLICE and CONCATENATION, or fold the order into weights", "E"),
    "GATHER_ND": Advice("SLICE and CONCATENATION, or on the CPU, last of all", "E"),
    "GELU": Advice("train with RELU, or x * LOGISTIC(1.702 x)", "T"),
    "HARD_SWISH": Advice("x * RELU6(x + 3) / 6, kept apart as ADD, RELU6, MUL", "W"),
    "LEAKY_RELU": Advice("MAXIMUM of x and alpha * x", "E"),
    "LOG": Advice("on the CPU, last of all", "T"),
    "MIRROR_PAD": Advice("PAD with zeros", "T"),
    "NEG": Advice("MUL by -1, or fold the sign into weights", "E"),
    "PADV2": Advice("PAD (zeros), or shift so that the padding value is zero", "I"),
    "POW": Advice("MUL x by itself", "E"),
    "REDUCE_PROD": Advice("MUL of slices", "E"),
    "REVERSE_V2": Advice("fold the order into weights", "E"),
    "SQRT": Advice("RSQRT times x", "E R"),
    "SQUARE": Advice("MUL x by itself", "E"),
    "TOPK_V2": Advice("leave it out and take it on the CPU, last of all", "T"),
    "UNPACK": Advice("SPLIT and RESHAPE", "E"),
    "TFLite_Detection_PostProcess": Advice(
        "nothing: it runs on the CPU by design", "G"
    ),
}
OTHERWISE = Advice(
    "replace it by operators of the table, or move it behind the network's end, where "
    "the CPU takes it",
    "T O",
)
STATIC = Advice("export with a fixed size and a fixed batch of 1", "I#829")
EIGHT_BITS = Advice("quantise the whole graph to int8: --format edgetpu", "T")
INNER = Advice("at most three dimensions above 1 behind the batch: reshape", "T")
DEPENDENT = Advice("change the op that it depends on", "G")
