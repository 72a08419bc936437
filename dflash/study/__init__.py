"""Studies: several drafts trained on the same batches, measured on the same prompts, and compared in pairs."""
