"""``python -m fastdef``: the command, from a checkout that is not installed too."""

from fastdef.cli import main

if __name__ == "__main__":
    main()
