"""Weight files: write, read and join them, and check them against models.lock."""
