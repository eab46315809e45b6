"""``python -m fastdef`` is the ``fastdef`` command, installed or not."""

from fastdef.cli import main

if __name__ == "__main__":
    main()
