"""The error tree: complete, documented, and equal to what the wire can say."""

from __future__ import annotations

import inspect

import grpc
import pytest
from spacegrid import errors
from spacegrid.wire.status import TIMEOUT, Status, error_of, pack_handler_error

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, errors.SpaceGridError)
]
LEAVES = [kind for kind in CLASSES if not kind.__subclasses__()]


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_leaf_names_its_code_and_what_can_be_done(kind: type[errors.SpaceGridError]) -> None:
    assert "code" in vars(kind), "a leaf has a code of its own"
    assert kind.code.replace("_", "").isalpha()
    assert isinstance(kind.retryable, bool)
    assert isinstance(kind.maybe_applied, bool)
    assert hasattr(grpc.StatusCode, kind.grpc_status)
    assert kind.__doc__


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_leaf_is_made_from_a_message(kind: type[errors.SpaceGridError]) -> None:
    error = kind("what failed")
    assert str(error) == "what failed"
    assert error.partition is None


def test_codes_are_used_once() -> None:
    codes = [kind.code for kind in CLASSES]
    assert len(set(codes)) == len(codes)


def test_every_error_is_exported_and_drawn_in_the_tree() -> None:
    assert errors.__doc__ is not None
    for kind in CLASSES:
        assert kind.__name__ in errors.__all__
        assert kind.__name__ in errors.__doc__
    assert list(errors.__all__) == sorted(errors.__all__)


def test_every_status_but_success_has_an_error() -> None:
    made_by_the_client = {Status.OK, Status.MISS, Status.UNKNOWN}
    for status in set(Status) - made_by_the_client:
        error = error_of(status, None, "put 'tea'", partition=3)
        assert type(error) in CLASSES
        assert str(error).startswith("put 'tea' (partition 3): ")
        assert error.partition == 3
    assert TIMEOUT not in set(Status)


def test_the_natural_built_ins_catch_them() -> None:
    assert issubclass(errors.DeadlineExceeded, TimeoutError)
    assert issubclass(errors.ConnectionFailed, ConnectionError)
    assert issubclass(errors.SerializationError, TypeError)
    assert issubclass(errors.ConfigError, ValueError)


def test_a_handlers_error_carries_type_and_traceback() -> None:
    value = pack_handler_error("ValueError", "no such size", "Traceback: ...")
    error = error_of(Status.HANDLER_ERROR, value, "call Shop.buy")
    assert isinstance(error, errors.HandlerError)
    assert error.error_type == "ValueError"
    assert error.remote_traceback == "Traceback: ..."
    assert str(error) == "call Shop.buy: ValueError: no such size"


def test_a_handlers_error_with_damaged_details_is_still_an_error() -> None:
    assert isinstance(error_of(Status.HANDLER_ERROR, b"\xff\x00", "call"), errors.HandlerError)


def test_backpressure_says_when_to_come_back() -> None:
    error = error_of(Status.BACKPRESSURE, (250).to_bytes(4, "little"), "put")
    assert isinstance(error, errors.Backpressure)
    assert error.retry_after == 0.25


def test_a_deadline_without_a_request_has_nothing_to_send_again() -> None:
    with pytest.raises(RuntimeError, match="nothing to send again"):
        errors.DeadlineExceeded("too late").resend()


def test_a_broken_invariant_is_outside_the_tree() -> None:
    errors.invariant(True, "never {}", 1)
    with pytest.raises(errors.InvariantViolation, match="position 7 after 9"):
        errors.invariant(False, "position {} after {}", 7, 9)
    assert not issubclass(errors.InvariantViolation, errors.SpaceGridError)
