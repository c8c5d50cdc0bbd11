"""Rewards of one group to advantages: pure functions."""

from __future__ import annotations

from trainer.advantages.group_relative import group_advantages

__all__ = ["group_advantages"]
