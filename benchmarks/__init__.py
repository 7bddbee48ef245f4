"""The speed of rmkit against stock TRL and a plain transformers loop: `python -m benchmarks` (docs/speed.md).

Not installed with rmkit; run it from the root of the repository.
"""
