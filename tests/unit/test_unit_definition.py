"""Definitions of units: what is refused when the class is made, and how calls are packed."""

from __future__ import annotations

import datetime
import inspect
from decimal import Decimal
from typing import Annotated, Any, NewType

import msgspec
import pytest
from spacegrid import _core
from spacegrid.errors import ConfigError, NoTurn, SerializationError, TooLarge
from spacegrid.limits import VALUE_BYTES_MAX
from spacegrid.types import Map
from spacegrid.unit import Unit, handler, handlers_of, maps_of
from spacegrid.unit.arguments import InvalidArguments


class Line(msgspec.Struct):
    code: str
    price: Decimal


class Shop(Unit):
    stock = Map(str, int)
    orders = Map(tuple[str, str], int)

    @handler(route_by="sku")
    async def buy(self, sku: str, customer: str, quantity: int = 1) -> bool:
        """Buy."""
        return bool(customer and quantity)

    @handler(route_by="key")
    def note(
        self, lines: list[Line], *, key: tuple[str, int], at: datetime.datetime | None = None
    ) -> dict[str, Decimal]:
        return {line.code: line.price for line in lines}

    def helper(self) -> int:
        return 1


def packed(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def test_a_handler_knows_its_names_and_signature() -> None:
    assert (Shop.buy.unit_name, Shop.buy.name, Shop.buy.full_name) == ("Shop", "buy", "Shop.buy")
    assert Shop.buy.route_by == "sku"
    assert Shop.buy.__doc__ == "Buy."
    assert list(Shop.buy.signature.parameters) == ["sku", "customer", "quantity"]
    assert Shop.buy.signature.return_annotation is bool
    assert inspect.iscoroutinefunction(Shop.buy.function)
    assert list(handlers_of(Shop)) == ["buy", "note"]
    assert maps_of(Shop) == {"stock": Shop.stock, "orders": Shop.orders}


def test_arguments_travel_as_one_map_of_their_names() -> None:
    key, data = Shop.buy.bind(("tea",), {"customer": "c1"})
    assert key == b"tea"
    assert msgspec.msgpack.decode(data) == {"sku": "tea", "customer": "c1", "quantity": 1}
    assert Shop.buy.codec.unpack(data) == (("tea", "c1", 1), None)


def test_arguments_by_name_structs_and_dates_come_back_as_their_types() -> None:
    at = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    key, data = Shop.note.bind(([Line("a", Decimal("1.10"))],), {"key": ("k{x}", 2), "at": at})
    assert key == b"x"
    args, kwargs = Shop.note.codec.unpack(data)
    assert args == ([Line("a", Decimal("1.10"))],)
    assert kwargs == {"key": ("k{x}", 2), "at": at}


def test_a_reply_is_read_as_the_annotated_type() -> None:
    data = Shop.note.encode_reply({"a": Decimal("1.10")})
    assert Shop.note.decode_reply(data) == {"a": Decimal("1.10")}
    with pytest.raises(SerializationError, match=r"Shop\.buy: its answer can't be read"):
        Shop.buy.decode_reply(packed("no bool"))
    with pytest.raises(SerializationError, match="its answer can't be packed"):
        Shop.buy.encode_reply(object())
    with pytest.raises(TooLarge, match=f"the limit is {VALUE_BYTES_MAX}"):
        Shop.buy.encode_reply(b"x" * VALUE_BYTES_MAX)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (("tea",), {}, r"Shop\.buy\(\): missing a required argument: 'customer'"),
        (("tea", "c", 1, 2), {}, "too many positional arguments"),
        (("tea", "c"), {"colour": 1}, "unexpected keyword argument 'colour'"),
        ((3.5, "c"), {}, "an argument can't be packed"),
        (("tea", object()), {}, "an argument can't be packed"),
        (("tea", "c", 1 << 70), {}, "an argument can't be packed"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_by_the_caller(
    args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(SerializationError, match=message):
        Shop.buy.bind(args, kwargs)


def test_a_call_over_its_limits_names_them() -> None:
    with pytest.raises(TooLarge, match=f"the limit is {VALUE_BYTES_MAX}"):
        Shop.buy.bind(("tea", "c" * VALUE_BYTES_MAX), {})
    with pytest.raises(TooLarge, match="4096"):
        Shop.buy.bind(("t" * 5000, "c"), {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sku": "tea"}, r"Shop\.buy: .*required field `customer`"),
        ({"sku": "tea", "customer": "c", "size": 1}, "unknown field `size`"),
        ({"sku": "tea", "customer": 7}, r"Expected `str`, got `int` - at `\$\.customer`"),
        (["tea", "c"], "Expected `object`, got `array`"),
    ],
)
def test_the_node_refuses_arguments_that_do_not_fit_and_names_them(
    arguments: Any, message: str
) -> None:
    with pytest.raises(InvalidArguments, match=message):
        Shop.buy.codec.unpack(packed(arguments))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x81", b"\xdf\xff\xff\xff\xff", b"\x92" * 5000])
def test_hostile_argument_bytes_are_an_error(data: bytes) -> None:
    with pytest.raises(InvalidArguments, match="Shop"):
        Shop.buy.codec.unpack(data)


def test_a_mutable_default_is_never_shared() -> None:
    class Shared(Unit):
        @handler(route_by="key")
        def take(self, key: str, tags: list[str] = ["a"]) -> None:  # noqa: B006
            tags.append(key)

    _, data = Shared.take.bind(("k",), {})
    (_, first), _ = Shared.take.codec.unpack(data)
    first.append("b")
    assert Shared.take.bind(("k",), {})[1] == data


def test_sets_are_packed_in_one_order_in_every_process() -> None:
    class Sets(Unit):
        @handler(route_by="key")
        def take(self, key: str, tags: set[str]) -> None: ...

    _, data = Sets.take.bind(("k", {"b", "c", "a"}), {})
    assert msgspec.msgpack.decode(data)["tags"] == ["a", "b", "c"]


Sku = NewType("Sku", str)


@pytest.mark.parametrize("good", [str, int, bytes, tuple[str, int], Sku, Annotated[str, "x"]])
def test_routing_types_that_are_taken(good: Any) -> None:
    def take(self: Any, key: Any) -> None: ...

    take.__annotations__["key"] = good
    made = type(Unit)("Taken", (Unit,), {"take": handler(route_by="key")(take)})
    assert made.take.bind((good_value(good),), {})[0]


def good_value(kind: Any) -> Any:
    return {int: 5, bytes: b"k", tuple[str, int]: ("k", 1)}.get(kind, "k")


@pytest.mark.parametrize("bad", [float, bool, dict, tuple[str, float], "str | int", list[str]])
def test_routing_types_that_are_refused(bad: Any) -> None:
    def take(self: Any, key: Any) -> None: ...

    take.__annotations__["key"] = bad
    with pytest.raises(TypeError, match=r"Bad\.take: route_by='key' is annotated .*a routing key"):
        type(Unit)("Bad", (Unit,), {"take": handler(route_by="key")(take)})


def test_route_by_must_name_a_parameter() -> None:
    with pytest.raises(TypeError, match=r"route_by='sku' is no parameter .*\(it has: key\)"):

        class Bad(Unit):
            @handler(route_by="sku")
            def take(self, key: str) -> None: ...


def test_every_parameter_is_annotated() -> None:
    with pytest.raises(TypeError, match="parameter 'other' has no annotation"):

        class Bad(Unit):
            @handler(route_by="key")
            def take(self, key: str, other) -> None: ...  # type: ignore[no-untyped-def]


def test_variable_arguments_and_generators_are_refused() -> None:
    with pytest.raises(TypeError, match=r"\*rest can't travel"):

        class Rest(Unit):
            @handler(route_by="key")
            def take(self, key: str, *rest: str) -> None: ...

    with pytest.raises(TypeError, match="it can't yield"):

        class Yields(Unit):
            @handler(route_by="key")
            def take(self, key: str) -> Any:
                yield key

    with pytest.raises(TypeError, match="its first parameter is self"):

        class Static(Unit):
            @handler(route_by="key")
            def take(*key: str) -> None: ...  # type: ignore[misc]


def test_a_name_is_used_once() -> None:
    with pytest.raises(TypeError, match="take is defined twice: it already is a handler"):

        class Twice(Unit):
            @handler(route_by="key")
            def take(self, key: str) -> None: ...

            @handler(route_by="key")
            def take(self, key: str) -> None: ...  # type: ignore[no-redef]  # noqa: F811

    with pytest.raises(TypeError, match="a and b are both the map 'same'"):

        class Same(Unit):
            a = Map(str, int, name="same")
            b = Map(str, int, name="same")

    with pytest.raises(TypeError, match=r"Reserved\.call: a handler can't have this name"):

        class Reserved(Unit):
            @handler(route_by="key")
            def call(self, key: str) -> None: ...  # type: ignore[override]


def test_a_unit_name_is_checked() -> None:
    class Other(Unit, name="shop-2"):
        @handler(route_by="key")
        def take(self, key: str) -> None: ...

    assert Other.take.full_name == "shop-2.take"
    with pytest.raises(ConfigError, match="can't name a unit"):

        class Dotted(Unit, name="a.b"): ...


def test_an_inherited_handler_belongs_to_the_unit_that_inherits_it() -> None:
    class Branch(Shop):
        @handler(route_by="sku")
        async def close(self, sku: str) -> None: ...

    assert Branch.buy.full_name == "Branch.buy"
    assert Shop.buy.full_name == "Shop.buy"
    assert set(handlers_of(Branch)) == {"buy", "note", "close"}
    assert maps_of(Branch) == maps_of(Shop)


def test_a_type_defined_later_is_found_at_the_first_use() -> None:
    assert Early.take.bind(("k", Late(1)), {})[0] == b"k"


class Early(Unit):
    @handler(route_by="key")
    def take(self, key: str, late: Late) -> None: ...


class Late(msgspec.Struct):
    x: int


def test_on_an_object_a_handler_is_a_plain_method() -> None:
    assert Shop().note([Line("a", Decimal(1))], key=("k", 1)) == {"a": Decimal(1)}


def test_maps_and_calls_need_a_turn() -> None:
    shop = Shop()
    with pytest.raises(NoTurn, match="outside of a handler"):
        _ = shop.stock
    with pytest.raises(NoTurn, match="outside a turn"):
        shop.call(Shop.buy, "tea", "c1")
    with pytest.raises(AttributeError, match="stock"):
        shop.stock = 1  # type: ignore[assignment]
    with pytest.raises(AttributeError, match="part of the unit's definition"):
        shop.buy = 1  # type: ignore[method-assign, assignment]


def test_the_decorator_needs_route_by_and_a_function() -> None:
    with pytest.raises(TypeError, match="route_by"):
        handler(route_by=print)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a handler is a function"):
        handler(route_by="key")(3)  # type: ignore[call-overload]


def test_the_routing_key_is_the_one_that_the_core_computes() -> None:
    key, _ = Shop.buy.bind(("order:{customer-42}:1", "c"), {})
    assert key == _core.routing_key(b"order:{customer-42}:1") == b"customer-42"
