"""Thin trainers, one a type: on TRL's RewardTrainer, on its DPOTrainer, on transformers' Trainer."""
