"""Write the stub files of the public names and of the pipelines: `python scripts/stubs.py`.

Signatures of calls are made when a class is declared; editors and type checkers, which do not run code, read them here.
"""

from __future__ import annotations
import ast
import builtins
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1] / "src/darkroom"
sys.path.insert(0, str(PACKAGE.parent))

from darkroom._public import NAMES  # noqa: E402

__all__ = ["stubs"]

HEADER = '# Written by scripts/stubs.py.\n# mypy: disable-error-code="override,assignment"\n'
HOMES = {  # where the names in annotations of calls come from
    "Any": "typing", "Callable": "collections.abc", "Generator": "torch", "Guidance": "..core.types", "Mapping": "collections.abc",
    "Sequence": "collections.abc", "Tensor": "torch",
}  # fmt: skip
ELLIPSIS = [ast.Expr(ast.Constant(...))]


def call_of(cls: type) -> ast.FunctionDef:
    """The `__call__` that the class got, without a body. Defaults that are no literals are left open."""
    parameters, marked = [], False
    for p in cls.__call__.__signature__.parameters.values():  # type: ignore[attr-defined]
        if p.kind is p.KEYWORD_ONLY and not marked:
            parameters.append("*")
            marked = True
        literal = p.default is None or isinstance(p.default, (bool, int, float, str))
        default = repr(p.default) if literal else "..."
        value = "" if p.default is p.empty else f" = {default}"
        parameters.append("self" if p.name == "self" else f"{p.name}: {p.annotation}{value}")
    return ast.parse(f"def __call__({', '.join(parameters)}) -> Any: ...").body[0]  # type: ignore[return-value]


def outline(body: list[ast.stmt], module: Any, *, inside: bool = False) -> list[ast.stmt]:
    """The public declarations among these statements, without values, bodies and docstrings."""
    kept: list[ast.stmt] = []
    for node in body:
        match node:
            case ast.Import() | ast.ImportFrom():
                kept.append(node)
            case ast.If(ast.Name("TYPE_CHECKING")):
                kept += node.body
            case ast.AnnAssign(ast.Name(name)) if not name.startswith("_"):
                kept.append(ast.AnnAssign(node.target, node.annotation, node.value and ast.Constant(...), 1))
            case ast.FunctionDef(name) if not name.startswith("_") or (inside and name == "__init__"):
                node.body, node.args = ELLIPSIS, open_defaults(node.args)
                kept.append(node)
            case ast.ClassDef(name) if not name.startswith("_"):
                node.body = outline(node.body, module, inside=True)
                cls = getattr(module, name)
                if hasattr(cls.__dict__.get("__call__"), "__signature__"):
                    node.body.append(call_of(cls))
                node.body = node.body or ELLIPSIS
                kept.append(node)
    return kept


def open_defaults(args: ast.arguments) -> ast.arguments:
    args.defaults = [d if isinstance(d, ast.Constant) else ast.Constant(...) for d in args.defaults]
    args.kw_defaults = [d if d is None or isinstance(d, ast.Constant) else ast.Constant(...) for d in args.kw_defaults]
    return args


def needed(tree: ast.Module) -> list[ast.stmt]:
    """Imports: those of the module that the outline uses, and those that only the calls need."""
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    known, imports = set(dir(builtins)), []
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            node.names = [a for a in node.names if (a.asname or a.name).split(".")[0] in names]
            known |= {(a.asname or a.name).split(".")[0] for a in node.names}
            if node.names:
                imports.append(node)
        elif isinstance(node, ast.ClassDef):
            known.add(node.name)
    extra = [f"from {HOMES[name]} import {name}" for name in sorted(names - known)]
    return [*ast.parse("\n".join(extra)).body, *imports]


def stub_of(file: Path) -> str:
    module = import_module(".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts))
    tree = ast.parse(file.read_text("utf-8"))
    tree.body = outline(tree.body, module)
    rest = [node for node in tree.body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    imports = needed(tree)
    return HEADER + "\n".join(ast.unparse(node) for node in [*imports, *rest]) + "\n"


def stubs() -> dict[Path, str]:
    """What each stub file has to contain."""
    public = sorted(f"from .{module} import {name} as {name}" for name, module in NAMES.items())
    texts = {PACKAGE / "__init__.pyi": "\n".join([HEADER.strip(), *public, "", "__version__: str", ""])}
    modules = sorted({m for m in NAMES.values() if m.startswith("families.")})
    return texts | {f.with_suffix(".pyi"): stub_of(f) for f in (PACKAGE / (m.replace(".", "/") + ".py") for m in modules)}


if __name__ == "__main__":
    for path, text in stubs().items():
        path.write_text(text, "utf-8")
        print(path.relative_to(PACKAGE.parents[1]))
