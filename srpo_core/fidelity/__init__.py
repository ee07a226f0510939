"""How close a stored format's images are to those of bf16."""
