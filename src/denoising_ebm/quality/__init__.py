"""How good samples are: distances to real images, precision and recall, memorization, classes."""
