import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar


Function = TypeVar("Function", bound=Callable[..., Any])


def spelled_out(*typed_dicts: type, defaults: Mapping[str, Any]) -> Callable[[Function], Function]:
    """Lists the keywords of a function that takes `**keywords: Unpack[...]` in its signature and docstring, for `help`
    and notebooks. Type checkers and the site read the `TypedDict` themselves.

    **Arguments:**

    - `typed_dicts`: each extends the one before it. The lists in their docstrings replace the entry of the docstring
        for `**keywords`.
    - `defaults`: by keyword.
    """
    # Without docstrings under `python -OO`.
    lists = [inspect.cleandoc(each.__doc__ or "").partition("\n- ")[2] for each in typed_dicts]
    described = "\n".join(f"- {entries}" for entries in lists)

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        *named, variadic = signature.parameters.values()
        keywords = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=annotation)
            for name, annotation in typed_dicts[-1].__annotations__.items()
        ]
        vars(function)["__signature__"] = signature.replace(parameters=[*named, *keywords])
        entry = re.compile(rf"^- `{variadic.name}`: .*$", re.MULTILINE)
        function.__doc__ = entry.sub(lambda _: described, inspect.cleandoc(function.__doc__ or ""))
        return function

    return decorate
