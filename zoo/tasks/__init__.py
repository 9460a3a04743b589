"""What a model is for: its data, its transforms, and the one loop that evaluates it."""
