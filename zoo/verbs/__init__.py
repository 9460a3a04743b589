"""What users do, a path each, readable from top to bottom."""
