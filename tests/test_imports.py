"""The arrows between rooms, read from the tree: who may import whom, who may load torch, and no circles."""

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
ALLOWED = {
    "errors": set(),
    "files": set(),
    "intervals": set(),
    "memory": set(),
    "units": {"errors"},
    "workers": set(),
    "commands": {"errors"},
    "strict": {"errors"},
    "spec": {"errors"},  # rnope.model.spec, which loads no torch
    "config": {"errors", "strict", "spec"},
    "results": {"errors", "strict", "files"},
    "recipes": {"errors", "strict", "config"},
    "messages": {"errors"},
    "tokenizer": {"errors", "files", "messages"},
    "kernels": {"errors"},
    "model": {"errors", "spec", "kernels"},
    "hf": {"errors", "strict", "files", "spec", "tokenizer", "model"},
    "generate": {"errors", "memory", "spec", "kernels", "model"},
    "data": {"errors", "strict", "files", "units", "workers", "commands", "config", "messages", "tokenizer"},
    "parallel": {"errors", "config", "spec", "kernels", "model"},
    "train": {
        "errors", "strict", "files", "memory", "units", "recipes", "spec", "config", "tokenizer", "kernels", "model", "hf",
        "data", "parallel", "rnope",
    },
    "evals": {
        "errors", "intervals", "strict", "files", "units", "commands", "config", "results", "tokenizer", "model", "hf",
        "generate", "data", "report", "rnope",
    },
    "analysis": {
        "errors", "intervals", "strict", "files", "memory", "units", "results", "tokenizer", "model", "hf", "generate",
        "data", "evals", "report",
    },
    "report": {"files", "intervals", "results", "units"},
    "complete": {"errors", "messages", "tokenizer", "kernels", "model", "generate", "hf", "units"},
    "compare": {
        "errors", "intervals", "strict", "files", "workers", "spec", "config", "results", "tokenizer", "kernels", "model", "hf",
        "generate", "data", "parallel", "evals", "analysis", "report", "rnope",
    },
    "bench": {
        "errors", "commands", "config", "parallel", "train", "files", "memory", "units", "spec", "kernels", "model", "hf",
        "generate", "report",
    },
    "cli": {
        "errors", "commands", "data", "train", "spec", "recipes", "results", "report", "compare", "bench", "complete",
        "evals", "analysis", "hf", "rnope",
    },
    "testing": {"spec", "model", "recipes", "data", "parallel", "tokenizer", "train"},
    "rnope": {"spec", "model", "hf", "generate"},  # the package itself: its public names, on first use
    "__main__": {"cli"},
}  # fmt: skip
"""Room -> the rooms that it may import. A new edge is a decision: make it here."""
WITHOUT_TORCH = [
    "rnope", "rnope.cli", "rnope.config", "rnope.errors", "rnope.strict", "rnope.results", "rnope.messages", "rnope.tokenizer",
    "rnope.model.spec", "rnope.model.accounting", "rnope.compare.plan", "rnope.compare.preview", "rnope.report",
    "rnope.data.prepare", "rnope.data.shards", "rnope.data.build", "rnope.data.rows", "rnope.data.command",
    "rnope.evals.command", "rnope.evals.results", "rnope.evals.suite", "rnope.evals.store", "rnope.evals.run",
    "rnope.evals.plan", "rnope.evals.page", "rnope.evals.niah.suite", "rnope.evals.ruler.suite",
    "rnope.evals.perplexity.suite", "rnope.evals.standard.suite",
    "rnope.evals.options", "rnope.analysis", "rnope.analysis.command", "rnope.analysis.results",
    "rnope.analysis.room", "rnope.analysis.page",
    "rnope.train.plan", "rnope.train.preview", "rnope.train.command", "rnope.hf.mapping", "rnope.hf.card",
    "rnope.hf.command", "rnope.hf.show", "rnope.hf.configs", "rnope.hf.keys", "rnope.hf.theta", "rnope.hf.programs",
    "rnope.complete.command",
]  # fmt: skip


def _name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {_name(path): ast.parse(path.read_bytes()) for path in sorted(SOURCE.rglob("*.py"))}


def room(module: str) -> str:
    parts = module.split(".")
    return "spec" if module == "rnope.model.spec" else parts[1] if len(parts) > 1 else "rnope"


def imported(module: str, *, deferred: bool) -> set[str]:
    """Modules that `module` names in its imports; with `deferred`, also those inside functions and TYPE_CHECKING."""
    found = set()
    queue: list[ast.AST] = [TREES[module]]
    while queue:
        node = queue.pop()
        late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        late = late or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        if late and not deferred:
            continue
        queue += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}: relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in TREES else node.module for name in whole}
    return found


def ours(modules: set[str]) -> set[str]:
    return {module for module in modules if module.split(".")[0] == "rnope"}


def test_the_tree_is_read():
    assert len(TREES) > 30 and imported("rnope.cli", deferred=True) > imported("rnope.cli", deferred=False)
    assert "rnope.config" in imported("rnope.compare.learn.stage", deferred=False)  # `from rnope import config`


def test_arrows_point_as_the_table_says():
    edges = {(room(a), room(b), a, b) for a in TREES for b in ours(imported(a, deferred=True)) if room(a) != room(b)}
    new = sorted(f"{a} -> {b}" for x, y, a, b in edges if y not in ALLOWED.get(x, ()))
    assert not new, f"not in the table: {new}"
    stale = {(x, y) for x, rooms in ALLOWED.items() for y in rooms} - {(x, y) for x, y, _, _ in edges}
    assert stale <= {("report", "errors"), ("report", "strict"), ("report", "spec")}, (
        f"in the table and unused: {stale}"
    )
    assert {room(module) for module in TREES} == set(ALLOWED)


def test_the_table_itself_has_no_circle():
    above: dict[str, set[str]] = {}
    rest = {name: rooms - {"rnope"} for name, rooms in ALLOWED.items()}
    while rest:
        free = [name for name, rooms in rest.items() if rooms <= set(above)]
        assert free, f"a circle among {sorted(rest)}"
        above |= {name: rest.pop(name) for name in free}


def test_no_module_imports_itself_by_a_detour():
    graph = {module: ours(imported(module, deferred=False)) - {"rnope"} for module in TREES}
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(graph[module]):
                walk(other, (*path, module))
            done.add(module)

    for module in TREES:
        walk(module, ())


def test_modules_that_must_run_without_torch_reach_none_that_names_it():
    for start in WITHOUT_TORCH:
        seen, queue = set(), [start]
        while queue:
            module = queue.pop()
            if module not in seen:
                seen.add(module)
                names = imported(module, deferred=False)
                heavy = {name for name in names if name.split(".")[0] in ("torch", "transformers", "safetensors")}
                assert not heavy, f"{start} reaches {module}, which imports {heavy}"
                queue += ours(names)


def test_importing_them_loads_no_torch():
    """All in one process: what they do not load together, none loads alone."""
    code = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
    assert not {"torch", "transformers"} & set(sys.modules), module
"""
    modules = [module for module in WITHOUT_TORCH if module != "rnope.report"]
    done = subprocess.run(
        [sys.executable, "-c", code, *modules],
        env={"PYTHONPATH": str(SOURCE)},
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_every_module_says_what_it_holds():
    bare = [module for module, tree in TREES.items() if not (ast.get_docstring(tree) or "").strip()]
    assert not bare
