"""The frozen target: loading, features, logits, and decoding sessions over a slot cache."""
