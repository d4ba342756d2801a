"""Reading, checking, augmenting and batching data sets."""
