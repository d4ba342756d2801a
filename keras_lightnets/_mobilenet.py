"""MobileNet's table, which others build of other convolutions."""

from keras_lightnets._blocks import StageRow

# fmt: off
MOBILENET_ROWS = (  # Howard et al. 2017, table 1, before the width
    #        stage   out  repeat stride
    StageRow(1,       64, 1,     1),
    StageRow(2,      128, 2,     2),
    StageRow(3,      256, 2,     2),
    StageRow(4,      512, 6,     2),
    StageRow(5,     1024, 2,     2),
)
# fmt: on
