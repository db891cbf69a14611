"""``python -m brushbench`` is the command ``brushbench``."""

from brushbench.cli import main

if __name__ == "__main__":
    main()
