"""What a user writes: recipes, their YAML, training arguments."""
