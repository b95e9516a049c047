"""A small interpreter for the programs world: runs model-written functions without `exec`.

Only what the world's programs use exists: one function, assignments, one return, arithmetic, comparisons, list
comprehensions, slices and the five builtins below. Everything else is an error, so text from a model is safe to run
anywhere; the step budget bounds time, the size limit bounds memory. Real Python programs belong in the runner under
evaluation.
"""

import ast
import operator
from collections.abc import Callable
from typing import Any

BUILTINS: dict[str, Callable[..., Any]] = {"sum": sum, "max": max, "min": min, "len": len, "sorted": sorted, "abs": abs}
_BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Mod: operator.mod,
    ast.FloorDiv: operator.floordiv,
}
_COMPARE = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.Gt: operator.gt,
    ast.LtE: operator.le,
    ast.GtE: operator.ge,
}
MAX_STEPS = 5000
MAX_SIZE = 10**9  # of a number; lists are bounded by the steps


class ProgramError(Exception):
    """The program is not in the language, or failed while running; the message names line and reason."""


class Program:
    """One function of the small language."""

    def __init__(self, source: str) -> None:
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ProgramError(f"line {getattr(error, 'lineno', 1)}: SyntaxError") from None
        if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
            raise ProgramError("line 1: not exactly one function")
        self.function = tree.body[0]
        self.steps = 0

    def call(self, argument: Any) -> Any:
        """The value of the function for one argument."""
        names = [a.arg for a in self.function.args.args]
        if len(names) != 1:
            raise ProgramError("line 1: not exactly one argument")
        scope = {names[0]: argument}
        self.steps = 0
        for line in self.function.body:
            try:
                if isinstance(line, ast.Return) and line.value is not None:
                    return self._value(line.value, scope)
                if (
                    not isinstance(line, ast.Assign)
                    or len(line.targets) != 1
                    or not isinstance(line.targets[0], ast.Name)
                ):
                    raise ProgramError("statement outside the language")
                scope[line.targets[0].id] = self._value(line.value, scope)
            except ProgramError as error:
                raise ProgramError(f"line {line.lineno}: {error}") from None
            except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
                raise ProgramError(f"line {line.lineno}: {type(error).__name__}") from None
        raise ProgramError("no return")

    def _value(self, node: ast.expr, scope: dict[str, Any]) -> Any:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise ProgramError("too many steps")
        value = self._evaluate(node, scope)
        if (isinstance(value, int) and abs(value) > MAX_SIZE) or (isinstance(value, list) and len(value) > MAX_STEPS):
            raise ProgramError("too large")
        return value

    def _evaluate(self, node: ast.expr, scope: dict[str, Any]) -> Any:
        match node:
            case ast.Constant(value=int()):
                return node.value
            case ast.Name(id=name):
                if name not in scope:
                    raise ProgramError(f"NameError {name}")
                return scope[name]
            case ast.UnaryOp(op=ast.USub()):
                return -self._value(node.operand, scope)
            case ast.BinOp() if type(node.op) in _BINARY:
                left, right = self._value(node.left, scope), self._value(node.right, scope)
                if not isinstance(left, int) or not isinstance(right, int):
                    raise TypeError
                return _BINARY[type(node.op)](left, right)
            case ast.Compare(ops=[op], comparators=[right]) if type(op) in _COMPARE:
                return _COMPARE[type(op)](self._value(node.left, scope), self._value(right, scope))
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in BUILTINS:
                return BUILTINS[name](self._value(argument, scope))
            case ast.Subscript(slice=ast.Slice(lower=low, upper=high, step=step)):
                parts = [None if p is None else self._value(p, scope) for p in (low, high, step)]
                return self._value(node.value, scope)[slice(*parts)]
            case ast.Subscript():
                return self._value(node.value, scope)[self._value(node.slice, scope)]
            case ast.ListComp(generators=[loop]) if isinstance(loop.target, ast.Name):
                return self._loop(node, loop, scope)
            case ast.List():
                return [self._value(e, scope) for e in node.elts]
        raise ProgramError(f"{type(node).__name__} is outside the language")

    def _loop(self, node: ast.ListComp, loop: ast.comprehension, scope: dict[str, Any]) -> list[Any]:
        out = []
        name = loop.target.id if isinstance(loop.target, ast.Name) else ""
        for element in self._value(loop.iter, scope):
            inner = scope | {name: element}
            if all(self._value(test, inner) for test in loop.ifs):
                out.append(self._value(node.elt, inner))
        return out
