"""Dense model in, Plan and weights out."""
