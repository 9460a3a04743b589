"""Which channels must be cut together, cutting them, and whether what is cut computes what masked channels do."""
