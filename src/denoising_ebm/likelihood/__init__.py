"""Log-likelihoods: the normalisation of the density network, the integral over noise levels, bits per dimension."""
