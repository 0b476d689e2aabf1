"""Size and shape of the package: files, lines, long functions, recipe keys, commands, dependencies, stack depth.

    python benchmarks/house.py                      # this tree
    python benchmarks/house.py --against REVISION   # this tree beside an earlier one
    python benchmarks/house.py --quick              # without the two short runs that measure stack depth

Lines of code are lines that hold something other than blanks, comments and docstrings. A public name is a function
or class at the top of a module that has no leading underscore. Stack depth counts frames of functions of this
package only, from the command to the optimiser step (``train``) and to the decoding of a tile (``predict``; frames of
the main thread while it waits and of the reading thread are added).
"""

from __future__ import annotations

import argparse
import ast
import configparser
import io
import json
import os
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST_FUNCTION, MOST_ARGUMENTS, LONGEST_FILE = 50, 6, 400
LIMITS = (
    f"functions over {LONGEST_FUNCTION} lines",
    f"functions over {MOST_ARGUMENTS} arguments",
    f"files over {LONGEST_FILE} lines",
    "module names used twice",
)
GOALS = {
    "files": 195,
    "lines": 28_000,
    "lines of code": 17_000,
    **dict.fromkeys(LIMITS, 0),
    "recipe keys": 101,
    "commands": 15,
    "core dependencies": 25,
}

KEYS = """
import json, typing
from pydantic import BaseModel
from wsi_ips.config import Recipe
def sections(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [s for inner in typing.get_args(annotation) for s in sections(inner)]
def keys(section):
    return sum(sum(keys(s) for s in sections(f.annotation)) or 1 for f in section.model_fields.values())
print(keys(Recipe))
"""
COMMANDS = """
import importlib, pkgutil, typer
import wsi_ips.cli as cli
modules = [importlib.import_module("wsi_ips.cli." + m.name) for m in pkgutil.iter_modules(cli.__path__)]
apps = {id(v): v for module in modules for v in vars(module).values() if isinstance(v, typer.Typer)}.values()
print(max(len(typer.main.get_command(a).commands) for a in apps if len(a.registered_commands) > 1))
"""
NAMES = "import wsi_ips; print(len([n for n in getattr(wsi_ips, '__all__', ()) if not n.startswith('_')]))"

DEPTH = """
import json, sys, threading
folder, command = sys.argv[1], sys.argv[2]
def own(frame):
    count = 0
    while frame:
        name = frame.f_code.co_filename.replace("\\\\", "/")
        count += "/wsi_ips/" in name and not frame.f_code.co_name.startswith("<")
        frame = frame.f_back
    return count
depths = []
def note():
    depth = own(sys._getframe(2))
    if threading.current_thread() is not threading.main_thread():
        depth += own(sys._current_frames()[threading.main_thread().ident])
    depths.append(depth)
def watch(owner, name):
    original = getattr(owner, name)
    def watched(*args, **kwargs):
        note()
        return original(*args, **kwargs)
    setattr(owner, name, watched)
if command == "train":
    import torch
    watch(torch.optim.AdamW, "step")
else:
    import simplejpeg
    watch(simplejpeg, "decode_jpeg")
from wsi_ips.cli import main
sys.argv = ["wsi-ips", command, f"{folder}/recipe.yaml", "--set", "compute.workers=0"]
try:
    main()
except SystemExit:
    pass
sys.stderr.write(f"DEPTH {max(depths)}\\n")
"""
RECIPE = """
name: house
output: run
manifest: MANIFEST
tissue: {mpp: 16.0}
tiles: {mpp: 2.0, patch_px: 64}
model: {encoder: resnet18-2, memory_size: 8, heads: 2, key_width: 8}
training: {epochs: 2, start_steps: 1}
"""


def files_of(package: Path) -> list[Path]:
    """Python files of the package, in order."""
    return sorted(p for p in package.rglob("*.py") if "node_modules" not in p.parts)


def lines_of_code(text: str, tree: ast.Module) -> int:
    """Count lines that hold code: no blanks, comments or docstrings."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        for child in getattr(node, "body", []) if isinstance(getattr(node, "body", None), list) else []:
            if (
                isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
                and isinstance(child.value.value, str)
            ):
                lines.difference_update(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    return len(lines)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a module."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count arguments without ``self`` and ``cls``."""
    found = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return sum(argument.arg not in ("self", "cls") for argument in found)


def public_names(tree: ast.Module) -> int:
    """Count functions and classes at the top of a module without a leading underscore."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return sum(isinstance(node, kinds) and not node.name.startswith("_") for node in tree.body)


def offenders(package: Path) -> dict[str, list[str]]:
    """List what breaks a limit, by the name of the limit. Commands may have more arguments: each is an option."""
    found: dict[str, list[str]] = {figure: [] for figure in LIMITS}
    paths = files_of(package)
    for path in paths:
        text, place = path.read_text(encoding="utf-8"), str(path.relative_to(package.parent))
        if len(text.splitlines()) > LONGEST_FILE:
            found[LIMITS[2]].append(place)
        for function in functions(ast.parse(text)):
            if (function.end_lineno or 0) - function.lineno + 1 > LONGEST_FUNCTION:
                found[LIMITS[0]].append(f"{place}: {function.name}")
            if arguments(function) > MOST_ARGUMENTS and "cli" not in path.parts:
                found[LIMITS[1]].append(f"{place}: {function.name}")
    stems = Counter(path.stem for path in paths if path.stem not in ("__init__", "__main__"))
    found[LIMITS[3]] = [stem for stem, count in stems.items() if count > 1]
    return found


def measured(root: Path) -> dict[str, int]:
    """Figures that the source alone tells."""
    package = root / "wsi_ips"
    texts = [path.read_text(encoding="utf-8") for path in files_of(package)]
    trees = [ast.parse(text) for text in texts]
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg", encoding="utf-8")
    required = [line for line in setup["options"]["install_requires"].splitlines() if line.strip()]
    return {
        "files": len(texts),
        "lines": sum(len(text.splitlines()) for text in texts),
        "lines of code": sum(lines_of_code(text, tree) for text, tree in zip(texts, trees, strict=True)),
        "comment lines": sum(line.lstrip().startswith("#") for text in texts for line in text.splitlines()),
        **{figure: len(places) for figure, places in offenders(package).items()},
        "core dependencies": len([line for line in required if not line.startswith("#")]),
        "public names": sum(public_names(tree) for tree in trees),
    }


def said_by(root: Path, code: str, *arguments: str, stream: str = "stdout") -> str:
    """Run code with the package of a tree and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(root)},
        cwd=root,
    )
    if done.returncode:
        raise SystemExit(f"{root}: {done.stderr.strip().splitlines()[-1]}")
    return str(getattr(done, stream))


def figures_of(root: Path, manifest: Path | None) -> dict[str, int]:
    """Return every figure of a tree; those of stack depth only with a manifest of slides."""
    return measured(root) | imported(root) | (depths(root, manifest) if manifest else {})


def imported(root: Path) -> dict[str, int]:
    """Figures that need the package to be imported."""
    return {
        "recipe keys": int(said_by(root, KEYS)),
        "commands": int(said_by(root, COMMANDS)),
        "names of `import wsi_ips`": int(said_by(root, NAMES)),
    }


def depths(root: Path, manifest: Path) -> dict[str, int]:
    """Own stack frames from the command to the optimiser step and to the decoding of a tile."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(RECIPE.replace("MANIFEST", str(manifest)), encoding="utf-8")
        for command, label in (
            ("train", "frames, train to optimiser step"),
            ("predict", "frames, predict to tile decoding"),
        ):
            said = said_by(root, DEPTH, folder, command, stream="stderr")
            figures[label] = int(said.rpartition("DEPTH ")[2])
    return figures


def make_cohort(folder: Path) -> Path:
    """Write eight small slides with this tree's code and return their manifest."""
    from wsi_ips.pipeline.demo_slides import DEMO, make_slides

    small = {"size_px0": (6144, 4096), "tissue_mm2": (0.8, 1.2), "lesion_mm": (0.4, 0.6)}
    return make_slides(folder, replace(DEMO, slides=8, split=(0.5, 0.0, 0.5), **small))


def main() -> None:
    """Print the figures as a table, and as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REVISION", help="an earlier commit to compare with")
    parser.add_argument("--quick", action="store_true", help="leave out the runs that measure stack depth")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        manifest = None if options.quick else make_cohort(Path(name) / "cohort")
        columns = {"now": figures_of(ROOT, manifest)}
        if options.against:
            before = Path(name) / "before"
            before.mkdir()
            archive = subprocess.run(["git", "archive", options.against], cwd=ROOT, capture_output=True, check=True)
            subprocess.run(["tar", "-x", "-C", str(before)], input=archive.stdout, check=True)
            columns = {"before": figures_of(before, manifest)} | columns
    print(f"{'':38}" + "".join(f"{name:>9}" for name in columns) + f"{'goal':>9}")
    for figure in columns["now"]:
        goal = f"<= {GOALS[figure]}" if figure in GOALS else ""
        print(f"{figure:38}" + "".join(f"{column.get(figure, '-'):>9}" for column in columns.values()) + f"{goal:>9}")
    if options.json:
        options.json.write_text(json.dumps(columns, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
