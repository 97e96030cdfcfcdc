"""`calculator`: arithmetic, read from the syntax tree and never evaluated as code."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from executors.agent.tools.fault import ToolFault

Number = int | float
_LONGEST = 1000
"""Characters of an expression."""
_MOST_BITS = 20_000
_MOST_DIGITS = 400
"""Size of a whole number that a power or a factorial may reach."""


def calculator(
    expression: Annotated[str, "Arithmetic such as (2 + 3) * 4, sqrt(2) ** 3, 17 % 5, round(10 / 3, 2)"],
) -> str:
    """Compute an arithmetic expression and return the number."""
    if len(expression) > _LONGEST:
        raise ToolFault(f"The expression has {len(expression)} characters; at most {_LONGEST} are read.")
    text = expression.strip().rstrip("=").strip().replace("×", "*").replace("÷", "/").replace("−", "-")
    try:
        return str(_value(ast.parse(text, mode="eval").body))
    except SyntaxError:
        raise ToolFault(f"{expression!r} is no arithmetic expression; write one such as (2 + 3) * 4.") from None
    except (ZeroDivisionError, ValueError, OverflowError, TypeError, RecursionError) as error:
        raise ToolFault(f"{expression!r} has no value: {error}.") from None


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and abs(exponent) * base.bit_length() > _MOST_BITS:
        raise ValueError("the number is too large")
    found = base**exponent
    if isinstance(found, complex):
        raise ValueError("the result is no real number")
    return found


def _factorial(number: Number) -> int:
    if number > 1000:
        raise ValueError("the number is too large")
    return math.factorial(int(number) if isinstance(number, float) and number.is_integer() else number)  # pyright: ignore[reportArgumentType]


def _round(number: Number, digits: int | None = None) -> Number:
    if digits is not None and abs(digits) > _MOST_DIGITS:
        raise ValueError("too many digits")
    return round(number, digits)


_BINARY: Mapping[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
    ast.BitXor: _power,  # people write 2^3
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Number], Number]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_CONSTANTS = {"pi": math.pi, "e": math.e}
_OF_MATH = (
    "sqrt", "exp", "log", "log2", "log10", "sin", "cos", "tan", "asin", "acos", "atan", "floor", "ceil", "gcd",
    "degrees", "radians",
)  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {name: getattr(math, name) for name in _OF_MATH}
_FUNCTIONS |= {"abs": abs, "round": _round, "min": min, "max": max, "factorial": _factorial, "pow": _power}


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left), _value(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*map(_value, args))
    known = ", ".join(sorted({*_CONSTANTS, *_FUNCTIONS}))
    raise ToolFault(f"{ast.unparse(node)!r} cannot be computed; there are + - * / // % ** and {known}.")
