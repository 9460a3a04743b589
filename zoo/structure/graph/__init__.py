"""A structure that stands alone: exported, as a graph over allow-listed operations, bounded, and run."""
