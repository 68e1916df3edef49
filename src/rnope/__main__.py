"""``python -m rnope``."""

from rnope.cli import main

if __name__ == "__main__":
    main()
