"""Talking to a target through its draft: ``python -m dflash.chat``."""
