"""Attributes of a defense that cannot change once it is made."""

from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class Fixed(Generic[T]):
    """A parameter that the steps hold once they are compiled: read under its name, kept under ``_name``.

    Raises:
        AttributeError: when it is set, since the steps would go on with what they were made of.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> "Fixed[T]": ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object | None, owner: type) -> Any:
        return self if instance is None else getattr(instance, f"_{self._name}")

    def __set__(self, instance: object, value: T) -> None:
        kind, name = type(instance).__name__, self._name
        new = f"a new {kind} with {name}={value!r:.80}"
        raise AttributeError(f"{kind}.{name} is fixed in the compiled steps; make {new}")
