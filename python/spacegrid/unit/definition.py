"""What a processing unit is: a class with maps and handlers.

::

    class Shop(Unit):
        stock = Map(str, Stock)

        @handler(route_by="sku")
        async def buy(self, sku: str, quantity: int = 1) -> bool: ...

The class is the definition and nothing else: `Shop.buy` on the class is a `Handler`, which clients
and other units call by; `host.UnitHost` makes one object of the class per node and runs handlers on
it. Mistakes in a definition are found when the class is made, or, where an annotation names
something that is not defined yet, at the handler's first use.

Invariants: a unit object keeps nothing between turns (assigning an attribute raises, but for the
hooks of its lifecycle); handler and map names are each used once in a unit.

Who calls: users' modules; clients (to pack a call); `host`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Concatenate, ParamSpec, Self, TypeVar, overload

from spacegrid.errors import ConfigError, NoTurn
from spacegrid.limits import NAME_BYTES_MAX
from spacegrid.types import HandlerSpec, Map, current_turn

from .arguments import ArgumentCodec

__all__ = ["AsyncHandler", "Handler", "PlainHandler", "Unit", "handler", "handlers_of", "maps_of"]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Handler(HandlerSpec[P, R_co]):
    """One handler of a unit, as clients and other units name it: ``Shop.buy``.

    Attributes:
        unit_name: Name of the unit, ``"Shop"``.
        name: Name of the handler, ``"buy"``.
        full_name: Both, as it travels: ``"Shop.buy"``.
        route_by: The parameter that carries the routing key.
        function: The function as it was written.
    """

    is_async: ClassVar[bool]

    def __init__(self, function: Callable[..., Any], route_by: str) -> None:
        self.function = function
        self.route_by = route_by
        self.name: str = function.__name__
        self.unit_name = ""
        self.full_name = self.name
        self.__doc__ = function.__doc__
        self.__wrapped__ = function
        self._codec: ArgumentCodec | None = None

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def of_unit(self, unit_name: str) -> Self:
        """Return it as a part of that unit: inherited handlers belong to the unit that inherits."""
        own = type(self)(self.function, self.route_by)
        own.name, own.unit_name, own.full_name = self.name, unit_name, f"{unit_name}.{self.name}"
        return own

    @property
    def codec(self) -> ArgumentCodec:
        """How its arguments and its answer are packed.

        Raises:
            TypeError: The function can't be a handler; see `ArgumentCodec`.
            NameError: An annotation names something that is not defined.
        """
        if self._codec is None:
            self._codec = ArgumentCodec(self.full_name, self.function, self.route_by)
        return self._codec

    @property
    def signature(self) -> inspect.Signature:
        """The signature that a caller sees, without ``self``."""
        return self.codec.signature

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, bytes]:
        """Pack a call: routing key, and one msgpack map of arguments; as `ArgumentCodec.bind`."""
        return (self._codec or self.codec).bind(args, kwargs)

    def encode_reply(self, value: Any) -> bytes:
        """Pack an answer; see `ArgumentCodec.encode_reply`."""
        return (self._codec or self.codec).encode_reply(value)

    def decode_reply(self, data: bytes) -> R_co:
        """Unpack an answer as the annotated type; see `ArgumentCodec.decode_reply`."""
        answer: R_co = (self._codec or self.codec).decode_reply(data)
        return answer

    def __repr__(self) -> str:
        return f"<handler {self.full_name} route_by={self.route_by!r}>"


class AsyncHandler(Handler[P, R_co]):
    """A handler written as ``async def``."""

    is_async = True

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Callable[P, Coroutine[Any, Any, R_co]]: ...
    def __get__(self, instance: object | None, owner: type) -> Any:
        """On the class the handler; on the object a plain method, run in the turn that calls it."""
        return self if instance is None else self.function.__get__(instance, owner)


class PlainHandler(Handler[P, R_co]):
    """A handler written as ``def``: it can't await, and costs a little less."""

    is_async = False

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Callable[P, R_co]: ...
    def __get__(self, instance: object | None, owner: type) -> Any:
        """On the class the handler; on the object a plain method, run in the turn that calls it."""
        return self if instance is None else self.function.__get__(instance, owner)


class _HandlerDecorator:
    """What ``@handler(route_by=...)`` applies; a class, so that both kinds are typed exactly."""

    def __init__(self, route_by: str) -> None:
        self._route_by = route_by

    @overload
    def __call__(  # type: ignore[overload-overlap]  # the first that fits is meant
        self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]
    ) -> AsyncHandler[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R]) -> PlainHandler[P, R]: ...
    def __call__(self, function: Callable[..., Any]) -> Any:
        if not inspect.isfunction(function):
            raise TypeError(f"a handler is a function of a unit's class, not {function!r}")
        kind = AsyncHandler if inspect.iscoroutinefunction(function) else PlainHandler
        return kind(function, self._route_by)


def handler(*, route_by: str) -> _HandlerDecorator:
    """Make a method of a `Unit` a handler.

    Args:
        route_by: Name of the parameter that carries the routing key: a str, an int, bytes or a
            tuple of them (a tuple routes by its first part). The handler runs on the node that owns
            it.

    Returns:
        The decorator. Under it, ``Shop.buy`` is a `Handler` typed by the method's own signature.

    Raises:
        TypeError: ``@handler`` was written without ``route_by``.
    """
    if not isinstance(route_by, str):
        raise TypeError(f'@handler needs route_by="name of a parameter", not {route_by!r}')
    return _HandlerDecorator(route_by)


class _Namespace(dict[str, Any]):
    """The body of a unit's class: a second handler or map of one name is a mistake."""

    def __setitem__(self, name: str, value: Any) -> None:
        before = self.get(name)
        if isinstance(before, (Handler, Map)):
            kind = "handler" if isinstance(before, Handler) else "map"
            unit = self.get("__qualname__", "unit")
            raise TypeError(f"{unit}.{name} is defined twice: it already is a {kind}")
        super().__setitem__(name, value)


class _UnitType(type):
    @classmethod
    def __prepare__(metacls, name: str, bases: tuple[type, ...], /, **options: Any) -> _Namespace:
        return _Namespace()


class Unit(metaclass=_UnitType):
    """Base class of processing units.

    A subclass declares maps (`Map`) and handlers (`handler`). Inside a handler ``self.stock`` is
    the map as the turn sees it, and `call` calls other handlers. There is one object per node; it
    keeps nothing between turns. A unit's name is its class name; ``class Shop(Unit, name="shop2")``
    gives another.

    `on_start` and `on_stop` may be overridden; they may set attributes (a compiled table, an HTTP
    client), and handlers read them.
    """

    __unit_name__: ClassVar[str] = ""
    __handlers__: ClassVar[Mapping[str, Handler[..., Any]]] = MappingProxyType({})
    __maps__: ClassVar[Mapping[str, Map[Any, Any]]] = MappingProxyType({})

    def __init_subclass__(cls, name: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__unit_name__ = _checked_name(cls, name if name is not None else cls.__name__)
        handlers, maps = _members(cls)
        for one in handlers.values():
            setattr(cls, one.name, one)
        cls.__handlers__ = MappingProxyType(handlers)
        cls.__maps__ = MappingProxyType(maps)

    def call(self, handler: Handler[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        """Call a handler of this or another unit, from inside a turn.

        The call is queued when this returns; calls made together (``asyncio.gather``) travel
        together. It leaves once everything this turn has read is committed, and its effect commits
        on its own. A re-run of the turn repeats the call under the same token, and it is applied
        once.

        Args:
            handler: Such as ``Stock.move``.
            args: Its arguments, checked by its own signature.
            kwargs: Its arguments by name.

        Returns:
            An awaitable of its answer.

        Raises:
            NoTurn: Outside a turn, or after the turn's end.
            CallCycle: The routing key called is in this turn's chain of callers.
            SerializationError: The arguments don't fit the signature.
        """
        run = current_turn.get(None)
        if run is None:
            raise NoTurn(
                f"{handler.full_name} was called with self.call outside a turn\n"
                "hint: outside a handler use grid.call"
            )
        answer: Awaitable[R] = run.call(handler, args, kwargs)
        return answer

    async def on_start(self) -> None:
        """Run once on each node before its first turn; may set attributes."""

    async def on_stop(self) -> None:
        """Run once on each node after its last turn."""

    def __setattr__(self, name: str, value: object) -> None:
        self._refuse_when_serving(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._refuse_when_serving(name)
        super().__delattr__(name)

    def _refuse_when_serving(self, name: str) -> None:
        cls = type(self)
        if name in cls.__maps__ or name in cls.__handlers__:
            raise AttributeError(f"{cls.__unit_name__}.{name} is a part of the unit's definition")
        if self.__dict__.get("_serving", False):
            raise AttributeError(
                f"{cls.__unit_name__}.{name} can't be assigned: units keep nothing between turns\n"
                "hint: put state into a map; on_start may set attributes"
            )


def handlers_of(unit: type[Unit]) -> Mapping[str, Handler[..., Any]]:
    """Handlers of a unit by name, inherited ones included."""
    return unit.__handlers__


def maps_of(unit: type[Unit]) -> Mapping[str, Map[Any, Any]]:
    """Maps of a unit by attribute name, inherited ones included."""
    return unit.__maps__


def _checked_name(cls: type, name: str) -> str:
    size = len(name.encode())
    if not name or "." in name or "\0" in name or size > NAME_BYTES_MAX // 2:
        raise ConfigError(
            f"{cls.__qualname__}: {name!r} can't name a unit\n"
            f"hint: 1 to {NAME_BYTES_MAX // 2} bytes, no dot"
        )
    return name


_RESERVED = frozenset({"call", "on_start", "on_stop"})


def _members(cls: type[Unit]) -> tuple[dict[str, Handler[..., Any]], dict[str, Map[Any, Any]]]:
    """Collect a unit's handlers and maps, and compile what can be compiled already."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        found.update(vars(base))
    unit_name = cls.__unit_name__
    handlers: dict[str, Handler[..., Any]] = {}
    maps: dict[str, Map[Any, Any]] = {}
    attribute_of: dict[str, str] = {}
    for attribute, value in found.items():
        if isinstance(value, Handler):
            _check_member(unit_name, attribute, "handler")
            if len(f"{unit_name}.{attribute}".encode()) > NAME_BYTES_MAX:
                raise ConfigError(f"{unit_name}.{attribute}: over {NAME_BYTES_MAX} bytes")
            own = handlers[attribute] = value.of_unit(unit_name)
            own.name, own.full_name = attribute, f"{unit_name}.{attribute}"
            _compile(own)
        elif isinstance(value, Map):
            _check_member(unit_name, attribute, "map")
            other = attribute_of.setdefault(value.name, attribute)
            if other != attribute:
                raise TypeError(
                    f"{unit_name}: {other} and {attribute} are both the map {value.name!r}"
                )
            maps[attribute] = value
    return handlers, maps


def _check_member(unit_name: str, attribute: str, kind: str) -> None:
    if attribute in _RESERVED or attribute.startswith("_"):
        raise TypeError(f"{unit_name}.{attribute}: a {kind} can't have this name")


def _compile(one: Handler[..., Any]) -> None:
    """Build the packers now; an annotation that is not defined yet waits for the first use."""
    try:
        _ = one.codec
    except NameError:
        return
