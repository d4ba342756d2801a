"""Input normalisations that backbones and heads share."""

from keras_lightnets._spec import Preprocessing

# ESPNet's authors divide by 255 behind mean and deviation. Of Cityscapes their script
# holds both; of CamVid they are measured on the 184 training images as there.
ESPNET_CITYSCAPES = Preprocessing(
    mean=(73.15840149, 82.90893555, 72.3923111),
    std=(44.91483307 * 255, 46.15289307 * 255, 45.3192215 * 255),
    size=512,
    crop=1.0,
    interpolation="bilinear",
)
ESPNET_CAMVID = Preprocessing(
    mean=(104.84942664, 108.23418771, 110.11500409),
    std=(69.79917698 * 255, 72.45968446 * 255, 71.9966812 * 255),
    size=360,
    crop=1.0,
    interpolation="bilinear",
)
