"""From text to batches: corpus, sources, mixtures, chat, prompts, regeneration, packing, batch stream, data modules."""
