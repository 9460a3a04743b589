"""Which channels must be cut together: ids of channels propagated over an exported program."""
