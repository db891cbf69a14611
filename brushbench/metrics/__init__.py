"""One metric a file; each states its definition, its protocols and the weights it needs."""
