"""Mutation testing by cosmic-ray: which changes of a line does no test notice?

    python -m tools.mutate [WORD ...]     test the mutants that are left, and the survivors again, of the modules whose
                                          path has one of the words, or of all
    python -m tools.mutate --report       counts and survivors of what was run, as a table for docs/testing.md

Each module is mutated in a copy of the tree under build/mutate and tested by the tests that mirror it. A session is a
database a module: an interrupted run goes on where it was, and one whose module has changed begins anew. Hours in all.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "mutate"
PARTS = ("fastdef", "kernels", "export", "tests", "benchmarks")
TESTS = {  # of each directory or module; the longest that fits
    "fastdef/attacks": "tests/attacks",
    "fastdef/attacks/_apgd.py": "tests/attacks/test_apgd.py",
    "fastdef/attacks/_gradients.py": "tests/evaluation/test_vanished.py -k 'record'",
    "fastdef/attacks/_losses.py": "tests/attacks/test_losses.py tests/attacks/test_apgd.py",
    "fastdef/attacks/_rays.py": "tests/attacks/test_rays.py",
    "fastdef/attacks/_signs.py": "tests/attacks/test_signs.py",
    "fastdef/evaluation": "tests/evaluation --ignore tests/evaluation/adaptive",
    "fastdef/evaluation/accuracy.py": "tests/evaluation/test_accuracy.py",
    "fastdef/evaluation/adaptive": "tests/evaluation/adaptive",
    "fastdef/evaluation/adaptive/noise_seeds.py": "tests/evaluation/adaptive/test_bpda.py -k draws",
    "fastdef/evaluation/adaptive/results.py": "tests/evaluation/adaptive/test_results.py",
    "fastdef/evaluation/adaptive/rows": "tests/evaluation/adaptive/test_rows.py",
    "fastdef/evaluation/adaptive/score.py": "tests/evaluation/adaptive/test_score.py",
    "fastdef/losses": "tests/losses",
    "fastdef/runtime/scheduler.py": "tests/runtime/test_scheduler.py",
    "fastdef/runtime/session.py": "tests/runtime/test_session.py tests/defense/test_active.py",
    "fastdef/serving": "tests/serving",
}
# What no type could take, or an annotation alone.
LEFT_OUT = r"core/ReplaceBinaryOperator_.*_(LShift|RShift|BitOr|BitAnd|BitXor|Mod|FloorDiv|Pow)"
CONFIG = """[cosmic-ray]
module-path = "{module}"
timeout = 300.0
excluded-modules = []
test-command = "{python} -B -m pytest -q -x -p no:cacheprovider -p no:xdist -m 'not slow and not gpu' {tests}"
[cosmic-ray.distributor]
name = "local"
[cosmic-ray.filters.operators-filter]
exclude-operators = ['{left_out}', 'core/ReplaceBinaryOperator_BitOr_.*']
"""


def main() -> None:
    """Run, or report."""
    words = sys.argv[1:]
    if words == ["--report"]:
        print(report())
        return
    for module in modules():
        if not words or any(word in module for word in words):
            run(module)


def modules() -> list[str]:
    """Every module of the mutated directories, by its path from the root."""
    found = {path for part in TESTS for path in (sorted((ROOT / part).rglob("*.py")) or [ROOT / part])}
    return sorted(str(path.relative_to(ROOT)) for path in found if path.name != "__init__.py")


def run(module: str) -> None:
    """All mutants of a module that have not been tested yet."""
    folder = BUILD / module.replace("/", "-").removesuffix(".py")
    tree, session, config, original = (
        folder / "tree",
        folder / "session.sqlite",
        folder / "config.toml",
        folder / "module",
    )
    if not original.is_file() or original.read_text() != (ROOT / module).read_text():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    copy(tree)
    tests = TESTS[max((part for part in TESTS if module.startswith(part)), key=len)]
    config.write_text(CONFIG.format(module=module, python=sys.executable, tests=tests, left_out=LEFT_OUT))
    call("-m", "cosmic_ray.cli", "baseline", str(config), cwd=tree)
    if not session.is_file():
        call("-m", "cosmic_ray.cli", "init", str(config), str(session), cwd=tree)
        call("-m", "cosmic_ray.tools.filters.operators_filter", str(session), str(config), cwd=tree)
        shutil.copy(ROOT / module, original)
    forget_survivors(session)
    call("-m", "cosmic_ray.cli", "exec", str(config), str(session), cwd=tree)
    shutil.rmtree(tree)


def forget_survivors(session: Path) -> None:
    """Have them tested again: there may be a test for them by now."""
    with sqlite3.connect(session) as database:
        database.execute("delete from work_results where test_outcome = 'SURVIVED'")


def copy(tree: Path) -> None:
    """A tree of what the tests need, so that this one is never broken."""
    shutil.rmtree(tree, ignore_errors=True)
    for part in PARTS:
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / part, tree / part, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tree / "pyproject.toml")


def call(*command: str, cwd: Path) -> None:
    """A step, in the copy, whose package is the one that is tested."""
    others = os.environ.get("PYTHONPATH", "")
    environment = {**os.environ, "PYTHONPATH": f"{cwd}{os.pathsep}{others}", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command], cwd=cwd, env=environment, check=True)


def report() -> str:
    """Mutants, killed and surviving, of each module that was run; and the survivors by line."""
    lines = ["| module | mutants | killed | survived | not run |", "| --- | ---: | ---: | ---: | ---: |"]
    survivors = []
    for module in modules():
        session = BUILD / module.replace("/", "-").removesuffix(".py") / "session.sqlite"
        if not session.is_file():
            continue
        rows = outcomes(session)
        counts = [sum(row[0] == kind for row in rows) for kind in ("KILLED", "SURVIVED", None)]
        lines.append(f"| `{module}` | {sum(counts)} | {counts[0]} | {counts[1]} | {counts[2]} |")
        survivors += [f"- `{module}:{line}` {name}" for kind, name, line in rows if kind == "SURVIVED"]
    return "\n".join([*lines, "", *survivors])


def outcomes(session: Path) -> list[tuple[str | None, str, int]]:
    """Of each mutant of a session its outcome, or None where it is not tested yet, its operator and its line."""
    with sqlite3.connect(session) as database:
        return database.execute(
            "select r.test_outcome, m.operator_name, m.start_pos_row from mutation_specs m"
            " left join work_results r on r.job_id = m.job_id"
            " where r.worker_outcome is null or r.worker_outcome != 'SKIPPED' order by m.start_pos_row"
        ).fetchall()


if __name__ == "__main__":
    main()
