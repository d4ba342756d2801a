"""Detection and segmentation heads: tensors in, tensors out."""
