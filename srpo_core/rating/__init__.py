"""Blind ratings by people: tasks, the page on which people rate, and their answers as data."""
