"""From text to batches: corpus, sources, chat, prompts, regeneration, packing, the batch stream, and the data modules."""
