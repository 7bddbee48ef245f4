"""Texts to token ids and tensors, the same for every type."""
