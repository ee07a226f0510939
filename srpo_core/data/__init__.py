"""Preference data: HPDv2's files as they come, their checks, and the tables that later stages read."""
