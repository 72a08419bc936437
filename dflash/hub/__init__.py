"""Drafts in the field's formats: export, import and inspection of draft folders (``python -m dflash.hub``)."""
