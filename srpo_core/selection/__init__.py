"""Choosing among checkpoints by their figures on validation prompts, in rounds of successive halving."""
