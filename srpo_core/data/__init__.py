"""Preference data: HPDv2's original files, their checks, and the tables that later stages read."""
