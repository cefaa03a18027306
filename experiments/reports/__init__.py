"""Reports that check the library: the papers' claims, certified gradients, and the benchmark."""
