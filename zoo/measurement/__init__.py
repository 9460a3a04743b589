"""What a model costs: counted by us, and as the sources count."""
