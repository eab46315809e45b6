"""What does each technique add to Active Defense, from a paper's loop to ours, on the same images in one run?

A step of WRN-28-10 is 17.2 GFLOP an image as the naive loop takes it, and 6.7 as it has to be. This is
``fastdef bench defense``; see it with ``--help``.
"""

import typer

from fastdef.cli.bench import defense

if __name__ == "__main__":
    typer.run(defense)
