"""Images by the million behind the defense, in parts: each a parquet file that is there whole or not at all."""

from fastdef.offline.part import Recipe as Recipe
from fastdef.offline.plan import Plan as Plan
from fastdef.offline.run import run as run
