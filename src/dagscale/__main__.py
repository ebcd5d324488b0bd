"""``python -m dagscale``."""

from dagscale.cli import main

if __name__ == "__main__":
    main()
