"""Mutants of the code that computes: ``python -m tests.planted.mutants [--files PART ...] [--limit N] [--jobs N]``.

Each mutant (``generator.py``) is put into a copy of the project, and the tests of its file run until one is red. The
score and the survivors are printed; ``survivors.md`` has the judgement on each. What is known goes to the resume file
and is not run again while neither the file nor its tests have changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import threading
from collections import Counter
from pathlib import Path
from queue import Empty, Queue

from tests.planted.generator import Mutant, mutants
from tests.planted.workshop import ROOT, Workshop, workshop

MATHS = "tests/maths/"
RECIPE_RUNS = "tests/recipes/"
TRUE = "tests/learner/test_true_gradient.py"
GRID = "tests/recipes/test_grid_identities.py"
TARGETS: dict[str, tuple[tuple[str, ...], set[str] | None]] = {
    "maths/returns.py": ((f"{MATHS}test_returns.py",), None),
    "maths/advantages.py": ((f"{MATHS}test_advantages.py", f"{MATHS}test_identities.py"), None),
    "maths/losses.py": ((f"{MATHS}test_losses.py", f"{MATHS}test_identities.py"), None),
    "maths/kl.py": ((f"{MATHS}test_kl.py",), None),
    "maths/weighting.py": ((f"{MATHS}test_weighting.py",), None),
    "maths/numeric.py": ((f"{MATHS}test_kl.py", f"{MATHS}test_losses.py"), None),
    "maths/distributions.py": ((f"{MATHS}test_distributions.py",), None),
    "maths/bellman.py": ((f"{MATHS}test_bellman.py", f"{MATHS}test_bellman_sparse.py"), None),
    "maths/mdp.py": ((f"{MATHS}test_bellman.py", f"{MATHS}test_bellman_sparse.py"), None),
    "learner/learner.py": (("tests/learner/test_learner.py", "tests/learner/test_optimizer.py", TRUE), None),
    "learner/optimizer.py": (("tests/learner/test_optimizer.py", "tests/learner/test_learner.py"), None),
    "recipes/sft.py": ((TRUE, "tests/recipes/test_runs.py"), {"loss", "heldout_loss"}),
    "recipes/grpo.py": (
        (TRUE, f"{RECIPE_RUNS}test_grpo.py"),
        {"make_loss", "weigh", "learn_from", "alive", "update"},
    ),
    "recipes/ppo.py": (
        (f"{RECIPE_RUNS}test_ppo.py", TRUE),
        {"policy_loss", "value_loss", "learn_from", "explained_variance", "moved_too_far", "update"},
    ),
    "recipes/loop.py": ((f"{RECIPE_RUNS}test_caught_ppo.py",), {"entropy_weight"}),
    "recipes/grid_lab.py": ((GRID,), {"targets_of", "flat", "scaled", "policy_loss", "value_loss"}),
    "recipes/grid_ppo.py": ((GRID,), {"learn_from"}),
    "recipes/grid_grpo.py": ((GRID,), {"learn_from"}),
    "recipes/grid_policy.py": ((GRID,), {"against_exact_values", "against_the_mean"}),
}
"""File: the tests that cover it, quickest first, and its functions (None: all). Written so that a survivor of these
tests is a gap in them, whatever the rest of the suite would say."""


def fingerprint(file: str) -> str:
    """Changes with the file and with its tests."""
    tests, _ = TARGETS[file]
    texts = [(ROOT / name).read_bytes() for name in (f"upslope/{file}", *tests, *caught_tests(file))]
    return hashlib.blake2b(b"\0".join(texts), digest_size=8).hexdigest()


def caught_tests(file: str, root: Path = ROOT) -> list[str]:
    """Tests that were written for survivors: ``test_caught_*.py`` beside the tests of the file."""
    folder = f"tests/{file.partition('/')[0]}"
    found = (root / folder).glob(f"test_caught_{Path(file).stem}.py")
    return [str(path.relative_to(root)) for path in sorted(found)]


def of_file(file: str) -> list[Mutant]:
    """The mutants of a file of ``TARGETS``."""
    return mutants((ROOT / "upslope" / file).read_text("utf-8"), file, TARGETS[file][1])


def verdict(shop: Workshop, mutant: Mutant, timeout: float) -> str:
    """``killed``, ``late`` (killed too: it never ended), ``survived`` or ``unknown`` (it got no answer: run again)."""
    name = f"upslope/{mutant.file}"
    source = (shop.copy / name).read_text("utf-8")
    with shop.replaced({name: mutant.apply(source)}) as changed:
        found = shop.check([*caught_tests(mutant.file, shop.copy), *TARGETS[mutant.file][0]], changed, timeout)
    if found.stuck:
        return "unknown"
    if not found.late and found.code not in (0, 1, 2):  # 2: the mutant could not even be imported
        raise RuntimeError(f"pytest ended with {found.code} under {mutant.key}:\n{found.log}")
    return "late" if found.late else "survived" if found.code == 0 else "killed"


def run(files: list[str], limit: int | None, jobs: int, timeout: float, resume: Path) -> dict[str, dict[str, str]]:
    """Verdicts by file and mutant."""
    known: dict[str, dict[str, str]] = json.loads(resume.read_text()) if resume.exists() else {}
    stamps = {file: f"{file} {fingerprint(file)}" for file in files}
    work: Queue[Mutant] = Queue()
    for file in files:
        for mutant in of_file(file)[:limit]:
            if mutant.key not in known.setdefault(stamps[file], {}):
                work.put(mutant)
    print(f"{work.qsize()} mutants to run", flush=True)
    lock = threading.Lock()

    def worker(place: Path) -> None:
        with workshop(place) as shop:
            for file in files:
                clean = shop.check([*caught_tests(file, shop.copy), *TARGETS[file][0]], timeout=10 * timeout)
                if clean.code != 0:
                    raise RuntimeError(f"the tests of {file} are red without a mutant:\n{clean.log}")
            while True:
                try:
                    mutant = work.get_nowait()
                except Empty:
                    return
                found = verdict(shop, mutant, timeout)
                if found == "unknown":
                    continue
                with lock:
                    known[stamps[mutant.file]][mutant.key] = found
                    resume.write_text(json.dumps(known, indent=1))
                    if found == "survived":
                        print(f"survived  {mutant.key}", flush=True)

    with tempfile.TemporaryDirectory(prefix="upslope-mutants-") as folder:
        threads = []
        for number in range(jobs):
            place = Path(folder) / str(number)
            place.mkdir()
            threads.append(threading.Thread(target=worker, args=(place,)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {file: {m.key: known[stamps[file]].get(m.key, "not run") for m in of_file(file)[:limit]} for file in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", nargs="*", default=[], help="parts of file names; none: all")
    parser.add_argument("--limit", type=int, default=None, help="at most so many mutants a file")
    parser.add_argument("--jobs", type=int, default=1, help="copies of the project that work at once")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds of CPU for the tests of one mutant")
    parser.add_argument("--resume", type=Path, default=ROOT / ".pytest_cache" / "mutants.json")
    options = parser.parse_args()
    files = [file for file in TARGETS if not options.files or any(part in file for part in options.files)]
    options.resume.parent.mkdir(parents=True, exist_ok=True)
    found = run(files, options.limit, options.jobs, options.timeout, options.resume)
    total: Counter[str] = Counter()
    for file, verdicts in found.items():
        counts = Counter(verdicts.values())
        total += counts
        print(f"{file:24} {line(counts)}")
    print(f"{'all':24} {line(total)}")


def line(counts: Counter[str]) -> str:
    killed, ran = counts["killed"] + counts["late"], sum(counts.values()) - counts["not run"]
    return f"{killed:4} of {ran:4} killed ({100 * killed / max(ran, 1):5.1f} %), {counts['survived']} survived"


if __name__ == "__main__":
    main()
