"""How the arguments and the answer of one handler are packed.

Arguments travel as one msgpack map of their names, so that a stub in another language can write
them and a handler can gain a parameter with a default. One `msgspec.Struct` is built per handler:
its constructor is the mapping from positions to names, and its decoder checks names and types on
the node before a turn touches anything.

Invariants: what `pack` gives, `unpack` takes; the same arguments give the same bytes in every
process (a re-run turn repeats its calls byte for byte); the routing key is taken from an
argument and from nothing else.

Who calls: `definition.Handler`. No I/O, no asyncio.
"""

from __future__ import annotations

import copy
import inspect
import operator
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from spacegrid import _core
from spacegrid.errors import SerializationError, TooLarge
from spacegrid.limits import TUPLE_PARTS_MAX, VALUE_BYTES_MAX
from spacegrid.types import _decode_other as decode_other
from spacegrid.types import _encode_other as encode_other

__all__ = ["ArgumentCodec", "InvalidArguments"]

_ROUTING_TYPES = (str, int, bytes)
_REFUSED_KINDS = {
    inspect.Parameter.VAR_POSITIONAL: "*{}",
    inspect.Parameter.VAR_KEYWORD: "**{}",
}


class InvalidArguments(ValueError):
    """Bytes that are no arguments of this handler; answered before it runs, as INVALID."""


class ArgumentCodec:
    """Packs and unpacks the arguments and the answer of one handler.

    Attributes:
        name: ``"Unit.handler"``, for messages.
        signature: The handler's signature without ``self``.
    """

    __slots__ = (
        "_arguments",
        "_keyword_names",
        "_positional_count",
        "_route",
        "name",
        "pack_arguments",
        "reply_decode",
        "reply_encode",
        "signature",
        "unpack_arguments",
    )

    def __init__(self, name: str, function: Callable[..., Any], route_by: str) -> None:
        """Read the function's signature and build its packers.

        Args:
            name: ``"Unit.handler"``.
            function: The handler as written, with ``self`` first.
            route_by: Name of the parameter that carries the routing key.

        Raises:
            TypeError: The function can't be a handler; the message says why.
            NameError: An annotation names something that is not defined yet.
        """
        self.name = name
        parameters = self._parameters(function)
        annotations = typing.get_type_hints(function, include_extras=True)
        self.signature = inspect.Signature(
            [p.replace(annotation=annotations.get(p.name, p.annotation)) for p in parameters],
            return_annotation=annotations.get("return", Any),
        )
        for parameter in parameters:
            if parameter.name not in annotations:
                raise TypeError(
                    f"{name}: parameter {parameter.name!r} has no annotation\n"
                    "hint: the node checks arguments by their annotated types"
                )
        if route_by not in self.signature.parameters:
            known = ", ".join(p.name for p in parameters) or "none"
            raise TypeError(
                f"{name}: route_by={route_by!r} is no parameter of the handler (it has: {known})"
            )
        _check_routing_type(name, route_by, annotations[route_by])

        positional = [p for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        keyword = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
        self._positional_count = len(positional)
        self._keyword_names = tuple(p.name for p in keyword)
        self._arguments = _argument_struct(name, positional, keyword, annotations)
        self._route = operator.attrgetter(route_by)
        order = _order([*annotations.values()])
        try:
            encoder = msgspec.msgpack.Encoder(enc_hook=encode_other, order=order)
            self.pack_arguments = self.reply_encode = encoder.encode
            self.unpack_arguments = msgspec.msgpack.Decoder(
                self._arguments, dec_hook=decode_other
            ).decode
            self.reply_decode = msgspec.msgpack.Decoder(
                self.signature.return_annotation, dec_hook=decode_other
            ).decode
        except TypeError as error:
            raise TypeError(f"{name}: an annotation can't travel: {error}") from error

    def _parameters(self, function: Callable[..., Any]) -> list[inspect.Parameter]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{self.name}: a handler returns one answer, it can't yield")
        parameters = list(inspect.signature(function).parameters.values())
        if not parameters or parameters[0].kind in _REFUSED_KINDS:
            raise TypeError(f"{self.name}: a handler is a method, its first parameter is self")
        for parameter in parameters[1:]:
            if parameter.kind in _REFUSED_KINDS:
                shown = _REFUSED_KINDS[parameter.kind].format(parameter.name)
                raise TypeError(
                    f"{self.name}: {shown} can't travel, arguments are packed by their names"
                )
        return parameters[1:]

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[bytes, bytes]:
        """Pack one call.

        Args:
            args: Positional arguments, without ``self``.
            kwargs: Arguments by name.

        Returns:
            The routing key, and the arguments as one msgpack map with every parameter by name.

        Raises:
            SerializationError: The arguments don't fit the signature, or one can't be packed.
            TooLarge: The packed arguments or the routing key are over their limit.
        """
        try:
            arguments = self._arguments(*args, **kwargs)
        except TypeError as error:
            raise self._misfit(args, kwargs, error) from None
        try:
            packed = self.pack_arguments(arguments)
            key = _core.routing_key(_core.encode_key(self._route(arguments)))
        except (TypeError, OverflowError) as error:
            raise SerializationError(
                f"{self.name}: an argument can't be packed: {error}"
            ) from error
        except ValueError as error:
            raise TooLarge(f"{self.name}: {error}") from error
        if len(packed) > VALUE_BYTES_MAX:
            raise TooLarge(
                f"{self.name}: arguments of {len(packed)} bytes, the limit is {VALUE_BYTES_MAX}"
            )
        return key, packed

    def _misfit(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], error: TypeError
    ) -> SerializationError:
        """What a plain call of the function would have said; off the fast path."""
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as plain:
            error = plain
        return SerializationError(f"{self.name}(): {error}")

    def unpack(self, packed: bytes) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
        """Unpack and check the arguments of a call on the node.

        Returns:
            Positional arguments, and those by name (None when the handler takes none that way).

        Raises:
            InvalidArguments: Unknown, missing or wrongly typed argument; the message names it.
        """
        try:
            values = msgspec.structs.astuple(self.unpack_arguments(packed))
        except (msgspec.MsgspecError, RecursionError) as error:
            raise InvalidArguments(f"{self.name}: {error}") from None
        if not self._keyword_names:
            return values, None
        count = self._positional_count
        return values[:count], dict(zip(self._keyword_names, values[count:], strict=True))

    def encode_reply(self, value: Any) -> bytes:
        """Pack the handler's answer.

        Raises:
            SerializationError: The answer can't be packed.
            TooLarge: The packed answer is over its limit.
        """
        try:
            packed = self.reply_encode(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise SerializationError(f"{self.name}: its answer can't be packed: {error}") from error
        if len(packed) > VALUE_BYTES_MAX:
            raise TooLarge(
                f"{self.name}: an answer of {len(packed)} bytes, the limit is {VALUE_BYTES_MAX}"
            )
        return packed

    def decode_reply(self, packed: bytes) -> Any:
        """Unpack an answer as the annotated return type.

        Raises:
            SerializationError: The bytes are no such value.
        """
        try:
            return self.reply_decode(packed)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise SerializationError(f"{self.name}: its answer can't be read: {error}") from error


def _argument_struct(
    name: str,
    positional: list[inspect.Parameter],
    keyword: list[inspect.Parameter],
    annotations: Mapping[str, Any],
) -> type[msgspec.Struct]:
    """Build the struct whose fields are the parameters, in the order of the signature."""

    def fields(parameters: list[inspect.Parameter]) -> list[Any]:
        return [
            (p.name, annotations[p.name])
            if p.default is p.empty
            else (p.name, annotations[p.name], _default(p.default))
            for p in parameters
        ]

    title = name.replace(".", "_")
    struct = msgspec.defstruct(title, fields(positional), forbid_unknown_fields=True, gc=False)
    if keyword:
        struct = msgspec.defstruct(
            title, fields(keyword), bases=(struct,), kw_only=True, forbid_unknown_fields=True
        )
    return struct


def _default(value: Any) -> Any:
    if isinstance(value, (list, dict, set, bytearray)):
        return msgspec.field(default_factory=lambda: copy.deepcopy(value))
    return value


def _plain(annotation: Any) -> Any:
    """The type below Annotated and NewType."""
    while True:
        if typing.get_origin(annotation) is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        else:
            return annotation


def _check_routing_type(name: str, route_by: str, annotation: Any) -> None:
    plain = _plain(annotation)
    parts = typing.get_args(plain) if typing.get_origin(plain) is tuple else (plain,)
    fits = 1 <= len(parts) <= TUPLE_PARTS_MAX and all(_plain(p) in _ROUTING_TYPES for p in parts)
    if not fits:
        shown = getattr(annotation, "__name__", None) or str(annotation)
        if isinstance(annotation, types.GenericAlias):
            shown = str(annotation)
        raise TypeError(
            f"{name}: route_by={route_by!r} is annotated {shown}; "
            "a routing key is str, int, bytes, or a tuple of them with at least one part"
        )


def _order(annotations: list[Any]) -> Literal["deterministic"] | None:
    """Sets have no order of their own, so handlers that take or give sets pack sorted."""

    def mentions_set(annotation: Any) -> bool:
        plain = _plain(annotation)
        origin = typing.get_origin(plain) or plain
        if isinstance(origin, type) and issubclass(origin, (set, frozenset)):
            return True
        return any(mentions_set(part) for part in typing.get_args(plain))

    return "deterministic" if any(mentions_set(a) for a in annotations) else None
