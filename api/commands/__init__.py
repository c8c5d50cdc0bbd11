"""The commands of ``holdfast``, one file per noun. Nothing heavy is imported before a command runs."""
