"""Thin trainers, one a type: TRL's RewardTrainer, a DPOTrainer subclass, transformers' Trainer. The losses are elsewhere."""
