"""Finding images unlike those of training, from energies."""
