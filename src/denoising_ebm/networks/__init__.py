"""The three networks of the model: encoder f_alpha, decoder with skips g_beta, semantic decoder h_gamma."""
