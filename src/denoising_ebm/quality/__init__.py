"""How good a model is: pictures of it, and distances between samples and data."""
