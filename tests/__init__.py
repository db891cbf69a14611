"""Ours, and not the package of this name that torch-fidelity installs."""
