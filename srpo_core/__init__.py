"""Align a text-to-image model with human preference by SRPO, and ship it."""

__version__ = "0.1.0"
