"""The files of a model folder or hub repository: weights, adapters, digests."""
