"""Files of weights: read, write, join, and models.lock."""
