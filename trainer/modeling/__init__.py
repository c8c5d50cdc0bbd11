"""The policy as a module: packed sequences, attention over them, and the loss head. No learner, no optimizer, no job."""
