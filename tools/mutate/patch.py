"""A mutant without importing anew: functions that are there already get the mutant's code."""

import gc
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

Key = tuple[str, int]  # name as far as the code knows it, and first line


def patched(original: Path, mutant: Path, file: Path) -> bool:
    """Give the loaded functions of ``file`` the code of a mutant; False, and nothing done, where it differs elsewhere.

    What runs at import (constants, defaults, class bodies, decorators) cannot be changed afterwards.
    """
    before, after = (compile(path.read_text(), str(file), "exec", dont_inherit=True) for path in (original, mutant))
    if _at_import(before) != _at_import(after):
        return False
    codes = {_key(code): code for code in _functions(after)}
    known = {_key(code) for code in _functions(before)}
    if len(codes) != len(list(_functions(after))) or codes.keys() != known:
        return False
    gc.unfreeze()
    for function in [one for one in gc.get_objects() if isinstance(one, FunctionType)]:
        code = codes.get(_key(function.__code__)) if function.__code__.co_filename == str(file) else None
        if code is not None and code.co_freevars == function.__code__.co_freevars:
            function.__code__ = code
    gc.freeze()
    return True


def _key(code: CodeType) -> Key:
    return getattr(code, "co_qualname", code.co_name), code.co_firstlineno


def _nested(code: CodeType) -> list[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _is_class(code: CodeType) -> bool:
    """A class body stores its ``__qualname__``; no function does."""
    return "__qualname__" in code.co_names and "__module__" in code.co_names


def _functions(code: CodeType) -> Iterator[CodeType]:
    """Those of a module and of its classes; what is inside a function comes with it."""
    for inner in _nested(code):
        if _is_class(inner):
            yield from _functions(inner)
        else:
            yield inner


def _at_import(code: CodeType) -> Any:
    """What a module or a class body does, its functions' bodies left out."""
    constants = [
        (_at_import(one) if _is_class(one) else _key(one)) if isinstance(one, CodeType) else (type(one), one)
        for one in code.co_consts
    ]
    return code.co_code, code.co_names, repr(constants)
