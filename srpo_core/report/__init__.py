"""The report: one self-contained page and one image that show what was won and what was lost."""
