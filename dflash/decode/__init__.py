"""Decoding: the speculative decoder, the autoregressive baseline, sampling and verification."""
