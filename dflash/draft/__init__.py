"""The trainable draft: its shape, taps, layouts, attention, layers and decoding session."""
