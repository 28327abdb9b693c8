"""What the code of a model's modules says, read from its source: never guessed from a name."""

import ast
import functools
import hashlib
import inspect
import io
import textwrap
import tokenize
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

STEP = "_normgate"
"""The attribute of a decoder layer, and of its router, that holds what runs in place of their stages."""

_LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


@dataclass(frozen=True)
class LayerCode:
    """A decoder layer's forward that runs add, norm and MoE block one after the other.

    norm, moe   the layer's attributes with the two modules
    multiplier  the attribute with what the attention's output is multiplied by before the add, if it is
    forward     the same function, but for the add and the norm: there it takes residual and normed row from STEP
    """

    norm: str
    moe: str
    multiplier: str | None
    forward: Callable[..., Any]


def digest(*functions: Callable[..., Any]) -> str | None:
    """What functions with the same parameters and statements share, however they are laid out, annotated and
    commented; None where there is no source.
    """
    parts = [_tokens(function) for function in functions]
    texts = [part for part in parts if part is not None]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16] if len(texts) == len(parts) else None


@functools.cache
def layer_code(forward: Callable[..., Any]) -> LayerCode | None:
    """The decoder layer whose forward this is; None where it has another form, or no source.

    The form, whatever the names: ``h = residual + x`` (or ``x * self.multiplier``); ``residual = h``;
    ``h = self.norm(h)``; and a statement that gives h, as the first argument, to ``self.moe``.
    """
    definition, function = _definition(forward), inspect.unwrap(forward)
    if definition is None or function.__code__.co_freevars:
        return None
    body = definition.body
    for at in range(len(body) - 3):
        stages = _stages(*body[at : at + 4])
        if stages is not None:
            norm, moe, multiplier, residual, x = stages
            text = f"{residual}, {ast.unparse(body[at].targets[0])} = self.{STEP}.add_norm_route(self, {residual}, {x})"  # type: ignore[attr-defined]
            step = ast.copy_location(ast.parse(text).body[0], body[at])
            for node in ast.walk(step):
                ast.copy_location(node, body[at])
            body[at : at + 3] = [step]
            return LayerCode(norm, moe, multiplier, _compiled(definition, function))
    return None


@functools.cache
def calls_on_rows(forward: Callable[..., Any]) -> frozenset[str]:
    """The attributes that a MoE block's forward calls first on the rows that it was given, in inference.

    Rows are the block's argument and views of it; statements under ``if self.training`` do not count.
    """
    definition = _definition(forward)
    if definition is None or len(definition.args.args) < 2:
        return frozenset()
    rows, called = {definition.args.args[1].arg}, set()
    for statement in definition.body:
        if isinstance(statement, ast.If) and "self.training" in ast.unparse(statement.test).split(" and "):
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and (name := _of_self(node.func)) and _first_name(node) in rows:
                called.add(name)
        is_view = isinstance(statement, ast.Assign) and _viewed(statement.value) in rows
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                (rows.add if is_view else rows.discard)(node.id)
    return frozenset(called)


def _stages(
    add: ast.stmt, keep: ast.stmt, norm: ast.stmt, moe: ast.stmt
) -> tuple[str, str, str | None, str, str] | None:
    """norm, moe, multiplier, and the names of the residual and of what is added to it, where these are the stages."""
    h, summed = _assigned(add)
    if h is None or not (isinstance(summed, ast.BinOp) and isinstance(summed.op, ast.Add)):
        return None
    residual, x, multiplier = summed.left, summed.right, None
    if isinstance(x, ast.BinOp) and isinstance(x.op, ast.Mult) and (multiplier := _of_self(x.right)):
        x = x.left
    kept, value = _assigned(keep)
    if not (isinstance(residual, ast.Name) and isinstance(x, ast.Name) and kept == residual.id):
        return None
    normed, call = _assigned(norm)
    norm_name = _of_self(call.func) if isinstance(call, ast.Call) else None
    if _name(value) != h or normed != h or norm_name is None or ast.unparse(call) != f"self.{norm_name}({h})":  # type: ignore[arg-type]
        return None
    block = moe.value if isinstance(moe, ast.Assign) else None
    moe_name = _of_self(block.func) if isinstance(block, ast.Call) and _first_name(block) == h else None
    return None if moe_name is None else (norm_name, moe_name, multiplier, residual.id, x.id)


def _assigned(statement: ast.stmt) -> tuple[str | None, ast.expr | None]:
    """``name = value``: both."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        return _name(statement.targets[0]), statement.value
    return None, None


def _name(node: ast.expr | None) -> str | None:
    return node.id if isinstance(node, ast.Name) else None


def _of_self(node: ast.expr) -> str | None:
    """``self.name``: name."""
    return node.attr if isinstance(node, ast.Attribute) and _name(node.value) == "self" else None


def _first_name(call: ast.Call) -> str | None:
    return _name(call.args[0]) if call.args else None


def _viewed(node: ast.expr) -> str | None:
    """The name that this is, or is a view of."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("view", "reshape"):
        return _name(node.func.value)
    return _name(node)


def _definition(function: Callable[..., Any]) -> ast.FunctionDef | None:
    """A tree of its own, with the lines of the file."""
    function = inspect.unwrap(function)
    try:
        lines, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        return None
    ast.increment_lineno(tree, first - 1)
    definition = tree.body[0]
    return definition if isinstance(definition, ast.FunctionDef) else None


def _compiled(definition: ast.FunctionDef, function: Any) -> Callable[..., Any]:
    """With the module's names, as they are when it runs, and the file's name and lines in a traceback."""
    module = ast.Module(body=[definition], type_ignores=[])
    namespace: dict[str, Any] = {}
    exec(compile(module, function.__code__.co_filename, "exec"), function.__globals__, namespace)
    compiled: Callable[..., Any] = namespace[definition.name]
    return compiled


@functools.cache
def _tokens(function: Callable[..., Any]) -> str | None:
    definition = _definition(function)
    if definition is None:
        return None
    body = definition.body[1:] if ast.get_docstring(definition) is not None else definition.body
    lines, first = inspect.getsourcelines(inspect.unwrap(function))
    text = textwrap.dedent("".join(lines[body[0].lineno - first :]))
    parameters = [argument.arg for argument in definition.args.args]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return " ".join([*parameters, ":", *(token.string for token in tokens if token.type not in _LAYOUT)])
