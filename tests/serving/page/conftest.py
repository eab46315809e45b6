from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("fastapi") else ["test_*"]  # of an extra, which not every machine has
