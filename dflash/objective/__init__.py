"""The loss: terms, weightings and the normaliser, chunked over the vocabulary."""
