"""CUDA without a GPU: the whole project on a pretended device. ``python -m tests.emulated_cuda`` runs every check."""
