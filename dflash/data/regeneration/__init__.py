"""Regeneration at scale: the target answers the prompts of a data set, into Parquet shards to train on."""
