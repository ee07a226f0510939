"""The report: a self-contained page, and an image grid, that show what was gained and what was lost."""
