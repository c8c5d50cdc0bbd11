"""How far a policy's answers are from those of another model."""
