"""Checks that every public name has a docstring in one form, with the arguments and shapes of its signature.

The parts of a docstring, all optional, in this order:

- `**Arguments:**`, a list of the names in the signature, in order: "- `images`: `(batch, height, width, channels)`,
  normalised." The call of a layer may leave out `state` and `key`, which `levitax.nn` describes. Classes that do not
  define `__init__` list their fields in the class docstring. Classes that the library returns have `**Attributes:**`
  instead. Except for arrays, a sentence before the list may refer to another one: "those of [`levitax.LeViT`][]". One
  argument needs no list if the text names it.
- `**Returns:**`, required with such a list if there is a result.
- `**Raises:**`, which must name exceptions.

The shape of an array is that of its annotation, as code: `(height, width, channels)`, `(classes,)`, `()` for a scalar,
and `(..., channels)` for the annotation `*tokens channels`. The annotation `...` has no shape. Shapes are in the list
or after `**Returns:**`, or anywhere if there is no list. The docstring has exactly the shapes of the annotations, each
once and in their order. Every array is annotated with a shape; random keys do not count as arrays. A class that
defines `__init__` lists its fields that are arrays under `**Attributes:**`, and may list others.

The docstrings of aliases and constants are below them.
"""

import ast
import builtins
import functools
import importlib
import inspect
import itertools
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import optax
import pytest
from jaxtyping import Array, PRNGKeyArray

from .test_docs import MODULES, public_names


NOTHING = inspect.Signature.empty
HEADING = r"^\*\*(Arguments|Attributes|Returns|Raises):\*\*"
ORDER = ["Arguments", "Attributes", "Returns", "Raises"]
LINK = r"\[`(levitax[\w.]*)`\]\[\]"
KEYS = [str(kind) for kind in typing.get_args(PRNGKeyArray)]


class Documented(NamedTuple):
    """A docstring, and the annotations of its function or class."""

    name: str
    text: str
    arguments: dict[str, Any]
    result: Any = NOTHING
    is_class: bool = False

    def parts(self) -> dict[str, str]:
        """Returns the text under each heading; the text before them is under ''."""
        found = re.split(HEADING, self.text, flags=re.MULTILINE)
        return {"": found[0], **dict(zip(found[1::2], found[2::2], strict=True))}

    def items(self, heading: str = "Arguments") -> dict[tuple[str, ...], str]:
        """Returns the entries of a list. An entry may describe several names."""
        text = self.parts().get(heading, "")
        entries = re.findall(r"^- ((?:`\w+`(?:, )?)+): (.*(?:\n(?:    .*|\n(?=    ))?)*)", text, re.MULTILINE)
        return {tuple(re.findall(r"`(\w+)`", names)): about for names, about in entries}

    def listed(self) -> list[str]:
        return [name for names in self.items() for name in names]


def shapes(annotation: Any) -> list[str]:
    """Returns the shapes in an annotation, each once, as a docstring writes them; '?' for an array without one."""
    if str(annotation) in KEYS:
        return []
    if hasattr(annotation, "dim_str"):
        axes = ["..." if axis.startswith("*") else axis for axis in annotation.dim_str.split()]
        if axes == ["..."]:
            return []  # Any shape, for an elementwise function.
        return [f"({', '.join(axes)}{',' * (len(axes) == 1)})"]
    if hasattr(annotation, "leaftype"):
        return shapes(annotation.leaftype)
    if annotation in (Array, np.ndarray):
        return ["?"]
    if annotation in (optax.ScalarOrSchedule, optax.OptState):
        return []  # One of optax's types, which includes an array without a shape.
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple):
        return once(shape for part in typing.get_args(annotation) for shape in shapes(part))
    return []


def stated(text: str) -> list[str]:
    return once(f"({inside})" for inside in re.findall(r"`\(([\w., ]*)\)`", text))


def once(values) -> list[Any]:
    return list(dict.fromkeys(values))


def of_function(name: str, function: Callable[..., Any], owner: type | None = None) -> Documented:
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if owner is not None and not inspect.ismethod(function):
        parameters = parameters[1:]
    arguments = {parameter.name: parameter.annotation for parameter in parameters}
    return Documented(name, inspect.cleandoc(function.__doc__ or ""), arguments, signature.return_annotation)


def of_class(name: str, cls: type) -> Iterator[Documented]:
    (source,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(source, ast.ClassDef)
    members = [node.name for node in source.body if isinstance(node, ast.FunctionDef)]
    described = Documented(name, inspect.cleandoc(cls.__doc__ or ""), inspect.get_annotations(cls), is_class=True)
    if "__init__" in members:
        listed = {name for names in described.items("Attributes") for name in names}
        fields = described.arguments.items()
        described = described._replace(
            arguments={field: kind for field, kind in fields if field in listed or shapes(kind)}
        )
    yield described
    for member in members:
        if member.startswith("_") and member not in ("__init__", "__call__"):
            continue
        value = inspect.getattr_static(cls, member)
        is_property = isinstance(value, property)
        function = value.fget if isinstance(value, property) else getattr(cls, member)
        assert function is not None
        described = of_function(f"{name}.{member}", function, cls)
        if member == "__init__":
            # There is always a docstring, because that of `object.__init__` is inherited.
            described = described._replace(result=NOTHING, text=described.text if described.arguments else "-")
        yield described if not is_property else described._replace(arguments={})


@functools.cache
def documented() -> dict[str, Documented]:
    """Returns all docstrings but those of aliases and constants, by name; `levitax.load` is one, too."""
    found = {}
    for module in MODULES:
        for name in sorted(public_names(module)):
            value = getattr(importlib.import_module(module), name)
            path = f"{module}.{name}"
            if isinstance(value, type) and value.__module__.startswith("levitax"):
                entries = list(of_class(path, value))
            elif inspect.isfunction(value):
                entries = [of_function(path, value)]
            else:
                continue
            found |= {entry.name: entry for entry in entries}
    return found


def of_link(name: str) -> Documented:
    """Returns the docstring that a link leads to; for a class, the one with its arguments."""
    return documented().get(f"{name}.__init__") or documented()[name]


def names_of(entry: Documented) -> list[str]:
    """Returns the names in the list, and those of the docstrings that the text before it refers to."""
    before = entry.parts().get("Arguments", "").partition("\n- ")[0]
    return entry.listed() + [name for link in re.findall(LINK, before) for name in names_of(of_link(link))]


def arrays_of(entry: Documented) -> list[str]:
    return [shape for annotation in (*entry.arguments.values(), entry.result) for shape in shapes(annotation)]


def faults_of_form(entry: Documented) -> Iterator[str]:
    if not entry.text:
        yield "has no docstring"
    headings = re.findall(HEADING, entry.text, re.MULTILINE)
    if headings != sorted(set(headings), key=ORDER.index):
        yield f"has the headings {headings}"
    if re.search(r"^\s*(Raises|Returns) `|(?<=[.] )(Raises|Returns) ", entry.text, re.MULTILINE):
        yield "mentions errors or results without a heading"
    result = entry.result not in (NOTHING, None)
    if "Arguments" in headings and result and not entry.is_class and "Returns" not in headings:
        yield "does not describe its result"


def faults_of_arguments(entry: Documented) -> Iterator[str]:
    if entry.is_class and "Attributes" in entry.parts():
        there = [name for names in entry.items("Attributes") for name in names]
    elif "Arguments" in entry.parts():
        there = entry.listed()
    else:
        unnamed = [name for name in entry.arguments if f"`{name}`" not in entry.text]
        if unnamed or len(entry.arguments) > 1:
            yield f"has no list of {list(entry.arguments)}"
        return
    handed_on = set(names_of(entry)) - set(there)
    if re.fullmatch(r"levitax\.nn\.\w+\.__call__", entry.name):
        handed_on |= {"state", "key"} - set(there)
    if there != [name for name in entry.arguments if name not in handed_on - set(there)]:
        yield f"lists {there} of {list(entry.arguments)}"


def faults_of_shapes(entry: Documented) -> Iterator[str]:
    entries = {names: about for heading in ("Arguments", "Attributes") for names, about in entry.items(heading).items()}
    # Annotations without an entry in a list; their shapes may be anywhere.
    left = dict(entry.arguments)
    for names, about in entries.items():
        expected = once(shape for name in names for shape in shapes(left.pop(name, None)))
        if expected and stated(about) != expected:
            yield f"has {stated(about)} for {names}, annotated {expected}"
    rest = once(shape for annotation in (*left.values(), entry.result) for shape in shapes(annotation))
    text = entry.parts().get("Returns", "") if entries or "Arguments" in entry.parts() else entry.text
    if rest and stated(text) != rest:
        yield f"has {stated(text)} for its result, annotated {rest}"
    around = entry.parts()[""] + entry.parts().get("Raises", "")
    if strangers := set(stated(around)) - set(arrays_of(entry)):
        yield f"speaks of {sorted(strangers)}, annotated {arrays_of(entry)}"


def faults_of_raises(entry: Documented) -> Iterator[str]:
    if (text := entry.parts().get("Raises")) is None:
        return
    names = re.findall(r"`([A-Z]\w+)`", text)
    for name in names:
        kind = getattr(builtins, name, None)
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            yield f"raises {name}, which is no exception"
    handed_on = [link for link in re.findall(LINK, text) if "Raises" in of_link(link).parts()]
    if not names and not handed_on:
        yield "has `**Raises:**` that names none"


CHECKS = (faults_of_form, faults_of_arguments, faults_of_shapes, faults_of_raises)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_docstrings_have_no(check):
    faults = [f"{entry.name} {fault}" for entry in documented().values() for fault in check(entry)]
    assert not faults, "\n" + "\n".join(faults)


def test_links_are_to_public_names():
    public = {f"{module}.{name}" for module in MODULES for name in public_names(module)}
    links = {link for entry in documented().values() for link in re.findall(LINK, entry.text)}
    assert len(links) > 30
    assert links <= public | documented().keys()


def test_aliases_and_constants_have_a_docstring_below():
    # Computed before the sources, because it imports the modules.
    names = {f"{module}.{name}" for module in MODULES for name in public_names(module)} - documented().keys()
    sources = [inspect.getsource(module) for name, module in sys.modules.items() if name.startswith("levitax")]
    described = set()
    for source in sources:
        body = ast.parse(source).body
        for node, below in itertools.pairwise(body):
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                described |= {target.id for target in targets if isinstance(target, ast.Name)}
    assert len(names) > 8
    assert {name for name in names if name.rpartition(".")[2] not in described} == set()
