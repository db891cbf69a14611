"""The embedded world: rendered scenes, the benchmark made of them, and the training of the models that know them."""
