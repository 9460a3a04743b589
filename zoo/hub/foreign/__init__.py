"""Other projects' checkpoints, read without running anything of theirs."""
