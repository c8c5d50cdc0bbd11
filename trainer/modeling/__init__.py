"""The policy as a module: packed sequences, attention over them, and the loss head. No learner, no optimizer, no job."""

from cluster.light_imports import without_scikit_learn

without_scikit_learn()  # before any module of this folder loads transformers' models
