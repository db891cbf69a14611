"""Training of the tiny diffusion family and of the models that judge it."""
