"""``python -m dagscale``."""

from dagscale.cli import main

AFFECTS_RESULTS = False

if __name__ == "__main__":
    main()
