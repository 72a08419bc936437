"""Heads: what is added to a draft's logits slot by slot, given the tokens before the slot. One module a kind."""
