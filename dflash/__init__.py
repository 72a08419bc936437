"""DFlash laboratory: distil block-diffusion drafts from a frozen target and measure what they buy."""

__version__ = "0.1.0"
