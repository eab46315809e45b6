"""``serve run CONFIGURATION`` on a cluster of two cores of this machine, with little shared memory."""

import sys

import ray
from ray.serve.scripts import cli

ray.init(num_cpus=2, object_store_memory=200_000_000, include_dashboard=False, log_to_driver=False)
cli(["run", sys.argv[1]])
