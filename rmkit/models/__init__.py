"""What the reward models need of transformers models."""
