"""Arithmetic as text: assignments and expressions over numbers, names, ``+ - * / **`` and a few functions.

    evaluate("last = 190.6; mass = 65.38; last + mass")      255.98

Nothing is executed: the text is parsed, and only what stands in ``_OPERATORS`` and ``_FUNCTIONS`` is computed. So the
short-text world needs no sandbox (and runs where namespaces are forbidden), and tasks can be computed from the same
step formulas that the expert writes into its programs.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
import warnings
from collections.abc import Callable, Mapping

MAX_CHARS = 400
MAX_EXPONENT = 64.0

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "exp": math.exp,
    "log": math.log,
    "log10": math.log10,
    "sqrt": math.sqrt,
}


def evaluate(text: str, names: Mapping[str, float] | None = None) -> float:
    """The value of the last expression (or assignment) of ``text``.

    Raises:
        ValueError: it is no arithmetic, a name is unknown, or the result is no finite number.
    """
    known = dict(names or {})
    value: float | None = None
    for statement in _parse(text):
        if isinstance(statement, ast.Expr):
            value = _value(statement.value, known)
        elif isinstance(statement, ast.Assign) and all(isinstance(target, ast.Name) for target in statement.targets):
            value = _value(statement.value, known)
            known |= {target.id: value for target in statement.targets if isinstance(target, ast.Name)}
        else:
            raise ValueError("not arithmetic")
    if value is None or not math.isfinite(value):
        raise ValueError("no finite number")
    return value


@functools.lru_cache(maxsize=20_000)
def _parse(text: str) -> tuple[ast.stmt, ...]:
    if len(text) > MAX_CHARS:
        raise ValueError("too long")
    try:
        with warnings.catch_warnings():  # of what a model wrote, such as "190if": a person's terminal is not for it
            warnings.simplefilter("ignore", SyntaxWarning)
            return tuple(ast.parse(text.strip()).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError("not arithmetic") from error


def _value(node: ast.expr, names: Mapping[str, float]) -> float:
    try:
        return _compute(node, names)
    except (OverflowError, ZeroDivisionError, RecursionError) as error:
        raise ValueError("no finite number") from error


def _compute(node: ast.expr, names: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_compute(node.operand, names)
    if isinstance(node, ast.BinOp):
        left, right = _compute(node.left, names), _compute(node.right, names)
        if isinstance(node.op, ast.Pow):
            if abs(right) > MAX_EXPONENT or (left < 0 and not right.is_integer()):
                raise ValueError("no finite number")
            return float(left**right)
        if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1 and not node.keywords:
        function = _FUNCTIONS.get(node.func.id)
        if function is not None:
            argument = _compute(node.args[0], names)
            try:
                return function(argument)
            except ValueError as error:  # a logarithm or root that is not real
                raise ValueError("no finite number") from error
    raise ValueError("not arithmetic")
