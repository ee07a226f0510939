"""The report: one self-contained page and one picture that show what was won and what was lost."""
