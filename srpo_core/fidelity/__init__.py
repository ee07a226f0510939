"""How close the images of a stored format are to those of the reference format."""
