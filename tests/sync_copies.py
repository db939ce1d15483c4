"""Keep the copies alike: `python tests/sync_copies.py` fails on drift, `--fix` renews every copy from its original.

Each module stands alone, so what two of them need stands in both. The line above a copy names its original,
`# Copied from 01_ebm_foundations.py: langevin`, or says why it is none, `# Differs from 05_....py: RBM - why`.
A name that two modules define without either mark is an error. `__main__` names the `if __name__ ...` block.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MARK = re.compile(r"# (Copied|Differs) from (\d\d_\w+\.py): (\w+)(?: - \S.*)?$")


def definitions(path):
    """The functions and classes of a module: {name: (its text, the words of its mark or None, (first, last line))}."""
    lines, found = path.read_text(encoding="utf-8").splitlines(keepends=True), {}
    for node in ast.parse("".join(lines)).body:
        is_main = isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) or is_main:
            first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))]) - 1
            mark = MARK.match(lines[first - 1].rstrip())
            text = "".join(lines[first : node.end_lineno])
            found[getattr(node, "name", "__main__")] = (text, mark and mark.groups(), (first, node.end_lineno))
    return found


def problems(root=ROOT, fix=False):
    """What is wrong with the copies below `root`, a sentence each; with `fix`, drifted copies are renewed instead."""
    paths = sorted(root.glob("[0-9][0-9]_*.py"))
    modules = {path.name: definitions(path) for path in paths}
    wrong = []
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        for name, (text, mark, (first, last)) in reversed(modules[path.name].items()):  # from the end: lines keep place
            earlier = [other for other in modules if other < path.name and name in modules[other]]
            if mark is None:
                if earlier and name != "Config":
                    wrong.append(f"{path.name}: {name} stands in {earlier[0]} too, and bears no mark")
                continue
            kind, source, original = mark
            original_text, original_mark, _ = modules.get(source, {}).get(original, (None, None, None))
            if original_text is None or original != name or source == path.name:
                wrong.append(f"{path.name}: the mark above {name} names {source}: {original}, which is not there")
            elif kind == "Copied" and original_mark and original_mark[0] == "Copied":
                wrong.append(f"{path.name}: {name} is a copy of a copy; name the original, not {source}")
            elif kind == "Copied" and original_text != text:
                if fix:
                    lines[first:last] = [original_text]
                else:
                    wrong.append(f"{path.name}: {name} has drifted from {source}; --fix renews it")
        if fix:
            path.write_text("".join(lines), encoding="utf-8")
    return wrong


if __name__ == "__main__":
    sys.exit("\n".join(problems(fix="--fix" in sys.argv[1:])) or None)
