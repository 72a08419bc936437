"""From text to batches: corpus, sources, chat, prompts, regeneration, packing, batch stream and data modules."""
