"""Which TensorRT names a source file uses, checked against the bindings that are imported. Runs in a child process.

A little type inference: what hangs on `trt` and `trtp` is looked up; what calls return is read from the docstrings of
the bindings, or from the `return` of a function of the same file; parameters without a type, and attributes of objects
of ours, are what their names stand for in CONVENTION. Attributes must exist and calls must fit a signature.
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

CONVENTION = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
}
"""Names of variables in files that drive the builder and the runtime."""

UNDOCUMENTED = {"get_plugin_registry": "IPluginRegistry", "get_error": "ParserError"}
"""What functions return whose docstrings do not say so."""

OVERRIDDEN = {"ILogger": ("log",), "IProgressMonitor": ("phase_start", "step_complete", "phase_finish")}
"""What a subclass must define, by its base."""


@dataclass(frozen=True)
class Instance:
    """A value of a class of the bindings."""

    kind: type


@dataclass(frozen=True)
class Method:
    """A method of such a value, not called yet."""

    kind: type
    name: str


@dataclass
class Findings:
    """What a file uses, and what of it is not there."""

    used: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def check_source(source: str, file: str, trt: ModuleType, trtp: ModuleType, convention: dict[str, str]) -> Findings:
    """Every use of TensorRT in one file."""
    tree = ast.parse(source)
    checker = Checker(file, trt, trtp, convention)
    checker.visit(tree)
    checker.findings = Findings()  # once more, now that it is known what functions return
    checker.visit(tree)
    return checker.findings


class Checker(ast.NodeVisitor):
    """Walks a module; variables are one flat scope per outermost function."""

    def __init__(self, file: str, trt: ModuleType, trtp: ModuleType, convention: dict[str, str]) -> None:
        self.file, self.trt = file, trt
        self.roots = {"trt": trt, "tensorrt": trt, "trtp": trtp}
        self.convention = {name: Instance(getattr(trt, kind)) for name, kind in convention.items()}
        self.scope: dict[str, Any] = {}
        self.returns: dict[str, Any] = {}
        self.function = ""
        self.findings = Findings()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = self.scope, self.function
        self.scope, self.function = dict(self.scope), node.name
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            self.declare(argument.arg, argument.annotation)
        for part in (*node.decorator_list, *node.body, *([] if node.returns is None else [node.returns])):
            self.visit(part)
        self.scope, self.function = outer

    def declare(self, name: str, annotation: ast.expr | None) -> None:
        """A parameter: of a class of the bindings, of another type, or of none."""
        kind = None if annotation is None else self.resolve(annotation)
        if isinstance(kind, type):
            self.scope[name] = Instance(kind)
        elif annotation is None or (isinstance(annotation, ast.Name) and annotation.id == "Any"):
            self.scope[name] = self.convention.get(name)
        else:
            self.scope[name] = None

    def visit_Return(self, node: ast.Return) -> None:
        found = None if node.value is None else self.resolve(node.value)
        if found is not None:
            self.returns[self.function] = found

    def inner_scope(self, node: ast.AST) -> None:
        """Comprehensions and lambdas have names of their own."""
        outer, self.scope = self.scope, dict(self.scope)
        generators: list[ast.comprehension] = getattr(node, "generators", [])
        for generator in generators:
            self.visit(generator)
        if isinstance(node, ast.Lambda):
            self.scope |= dict.fromkeys((argument.arg for argument in node.args.args), None)
        for name, part in ast.iter_fields(node):
            if name != "generators" and isinstance(part, ast.AST):
                self.visit(part)
        self.scope = outer

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_Lambda = inner_scope

    def visit_Name(self, node: ast.Name) -> None:
        """A name that a loop, a `with` or the like assigns to is of no known type."""
        if isinstance(node.ctx, ast.Store):
            self.scope[node.id] = None

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """A class that derives from one of TensorRT's: what is to be overridden exists there, and is overridden."""
        own = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
        for base in node.bases:
            kind = self.resolve(base)
            for name in OVERRIDDEN.get(getattr(kind, "__name__", ""), ()):
                self.member(kind, name, node)
                if name not in own:
                    self.problem(node, f"{node.name} does not override {name}")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        value = self.resolve(node.value)
        for target in node.targets:
            self.visit(target)
            if isinstance(target, ast.Name):
                self.scope[target.id] = value

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.resolve(node)

    def visit_Call(self, node: ast.Call) -> None:
        self.resolve(node)

    def resolve(self, node: ast.expr) -> Any:
        """What an expression is, as far as TensorRT is concerned; None if it is something else."""
        if isinstance(node, ast.Name):
            return self.roots.get(node.id) or self.scope.get(node.id)
        if isinstance(node, ast.Attribute):
            return self.attribute(node)
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, (ast.BoolOp, ast.IfExp)):
            parts = node.values if isinstance(node, ast.BoolOp) else [node.test, node.body, node.orelse]
            found = [self.resolve(part) for part in parts]
            return next((each for each in found[isinstance(node, ast.IfExp) :] if each is not None), None)
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda)):
            self.inner_scope(node)
        else:
            self.generic_visit(node)
        return None

    def attribute(self, node: ast.Attribute) -> Any:
        owner = self.resolve(node.value)
        if owner is None:
            name = node.attr.lstrip("_")
            ours = isinstance(node.value, ast.Name) and node.value.id == "self"
            return self.roots.get(name) or (self.convention.get(name) if ours else None)
        if isinstance(owner, Instance):
            return self.member(owner.kind, node.attr, node)
        if isinstance(owner, Method):
            return None
        self.findings.used.add(f"{getattr(owner, '__name__', owner)}.{node.attr}")
        if not hasattr(owner, node.attr):
            self.problem(node, f"{ast.unparse(node)} does not exist")
            return None
        return getattr(owner, node.attr)

    def member(self, kind: type, name: str, node: ast.AST) -> Any:
        self.findings.used.add(f"{kind.__name__}.{name}")
        if inspect.isfunction(kind.__init__) and name in inspect.signature(kind).parameters:
            return None  # set by a constructor in Python
        if not hasattr(kind, name):
            self.problem(node, f"{kind.__name__}.{name} does not exist")
            return None
        found = getattr(kind, name)
        if isinstance(found, property):
            return self.returned(found.fget.__doc__ or "")
        return Method(kind, name)

    def call(self, node: ast.Call) -> Any:
        function = self.resolve(node.func)
        for part in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.visit(part)
        if function is None or isinstance(function, ModuleType):
            return self.returns.get(node.func.id) if isinstance(node.func, ast.Name) else None
        positional = len(node.args)
        keywords = [keyword.arg for keyword in node.keywords]
        starred = None in keywords or any(isinstance(argument, ast.Starred) for argument in node.args)
        bound = isinstance(function, (Method, type))
        target = getattr(function.kind, function.name) if isinstance(function, Method) else function
        if not starred and not fits(target, positional + bound, [str(name) for name in keywords]):
            self.problem(node, f"{ast.unparse(node)} fits no signature")
        if isinstance(function, type):
            return Instance(function)
        name = getattr(target, "__name__", "")
        if name in UNDOCUMENTED:
            return Instance(getattr(self.trt, UNDOCUMENTED[name]))
        return self.returned(getattr(target, "__doc__", None) or "")

    def returned(self, text: str) -> Any:
        """The class that a docstring's signature says is returned."""
        kinds = set(re.findall(r"\) -> [\w.]*?(\w+)$", text, re.MULTILINE))
        kind = getattr(self.trt, kinds.pop(), None) if len(kinds) == 1 else None
        return Instance(kind) if isinstance(kind, type) else None

    def problem(self, node: ast.AST, text: str) -> None:
        self.findings.problems.append(f"{self.file}:{getattr(node, 'lineno', 0)}: {text}")


def fits(function: Any, positional: int, keywords: list[str]) -> bool:
    """Whether a call with so many positional arguments (self among them) and these keywords can be meant."""
    if isinstance(function, type):
        function = function.__init__
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return any(fits_overload(names, positional, keywords) for names in overloads(function))
    try:
        signature.bind(*[None] * positional, **dict.fromkeys(keywords))
    except TypeError:
        return False
    return True


def overloads(function: Any) -> list[list[str]]:
    """The parameters of every signature in a docstring that pybind11 wrote, each as `name` or `name=`."""
    found = []
    text = function.__doc__ or ""
    for line in re.findall(rf"^(?:\d+\. )?{re.escape(function.__name__)}\((.*)\) -> ", text, re.MULTILINE):
        if line == "*args, **kwargs":
            continue
        depth, parts = 0, [""]
        for letter in line:
            depth += (letter in "[(<{") - (letter in "])>}")
            if letter == "," and depth == 0:
                parts.append("")
            else:
                parts[-1] += letter
        found.append([part.split(":")[0].strip() + ("=" if " = " in part else "") for part in parts if part.strip()])
    return found


def fits_overload(names: list[str], positional: int, keywords: list[str]) -> bool:
    by_name = {name.rstrip("=") for name in names[positional:]}
    required = {name for name in names[positional:] if not name.endswith("=")}
    return positional <= len(names) and set(keywords) <= by_name and required <= set(keywords)
