"""tensorrt-lean as TensorRT, for tests on a CPU: it has TensorRT's own plugin registry and its own `tensorrt.plugin`.

What these need and lean lacks is the enum TensorFormat, the class ITensor, and sizes that can be made outside a network
with the classes that hold them: the stand-ins of this file.
"""

import enum
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import plugins
from plugins import op

Sizes = Mapping[str, int]
"""Sizes that are known at run time only, by name."""
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "SUM": lambda a, b: a + b,
    "SUB": lambda a, b: a - b,
    "PROD": lambda a, b: a * b,
    "MAX": max,
    "MIN": min,
    "EQUAL": lambda a, b: int(a == b),
    "LESS": lambda a, b: int(a < b),
    "FLOOR_DIV": lambda a, b: a // b,
    "CEIL_DIV": lambda a, b: -(-a // b),
}


class Expression:
    """For IDimensionExpr: a size, constant or computed from `Sizes`."""

    def __init__(self, at: Callable[[Sizes], int], constant: int | None = None) -> None:
        self.at, self.constant = at, constant

    def is_constant(self) -> bool:
        return self.constant is not None

    def get_constant_value(self) -> int:
        assert self.constant is not None
        return self.constant


class ExprBuilder:
    """For IExprBuilder."""

    def constant(self, value: int) -> Expression:
        return Expression(lambda _: value, value)

    def operation(self, kind: Any, a: Expression, b: Expression) -> Expression:
        compute = OPERATIONS[kind.name]
        if a.constant is not None and b.constant is not None:
            return self.constant(compute(a.constant, b.constant))
        return Expression(lambda sizes: compute(a.at(sizes), b.at(sizes)))


class ISymExpr:
    type: Any
    dtype: Any
    expr: Expression


class PluginTensorDesc(SimpleNamespace):
    dims: Any
    type: Any
    format: Any


class DynamicPluginTensorDesc(SimpleNamespace):
    desc: PluginTensorDesc


FORMATS = "LINEAR CHW2 HWC8 CHW4 CHW16 CHW32 DHWC8 CDHW32 HWC DLA_LINEAR DLA_HWC4 HWC16 DHWC"


@contextmanager
def as_tensorrt() -> Iterator[ModuleType]:
    """tensorrt-lean by the name `tensorrt`; afterwards that, `tensorrt.plugin` and ours are as if never loaded."""
    lean = importlib.import_module("tensorrt_lean")
    trt = ModuleType("tensorrt")
    stand_ins = {
        "TensorFormat": enum.IntEnum("TensorFormat", FORMATS, start=0),
        "ITensor": type("ITensor", (), {}),
        "IDimensionExpr": Expression,
        "DimsExprs": lambda length: [None] * length,
        "ISymExpr": ISymExpr,
        "PluginTensorDesc": PluginTensorDesc,
        "DynamicPluginTensorDesc": DynamicPluginTensorDesc,
    }
    vars(trt).update(vars(lean) | {"__name__": "tensorrt"} | stand_ins)
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_ours(name)}
    sys.modules["tensorrt"] = trt
    try:
        yield trt
    finally:
        registry = trt.get_plugin_registry()
        creator = registry.get_creator(op.NAME, str(op.VERSION), op.DOMAIN)
        if creator is not None:
            registry.deregister_creator(creator)
        for name in filter(_is_ours, list(sys.modules)):
            del sys.modules[name]
        vars(plugins).pop("tensorrt_qdp", None)
        sys.modules.update(before)


def _is_ours(name: str) -> bool:
    ours = ("tensorrt", "tensorrt_lean_bindings.plugin", "plugins.tensorrt_qdp")
    return any(name == root or name.startswith(root + ".") for root in ours)
