"""When a node asks to be controller, event by event."""

from __future__ import annotations

from spacegrid.machine.events import (
    Campaign,
    CampaignDone,
    CampaignFailed,
    ControllerChanged,
    ControllerHeard,
    RegistrationsChanged,
    Ticked,
)
from spacegrid.machine.standby import CAMPAIGN_STAGGER_MS, SILENT_MS, TICK_MS, Standby
from spacegrid.machine.table import Registration


def nodes(*incarnations: int, leaving: tuple[int, ...] = ()) -> RegistrationsChanged:
    return RegistrationsChanged(
        tuple(
            Registration(name=f"node-{number}", incarnation=number, draining=number in leaving)
            for number in incarnations
        )
    )


def test_the_first_node_of_a_cluster_campaigns_at_once() -> None:
    standby = Standby(1)
    assert standby.handle(ControllerChanged(0, 0), 0) == []
    assert standby.handle(nodes(1), 0) == [Campaign(0)]


def test_a_node_that_is_not_registered_yet_waits() -> None:
    standby = Standby(2)
    assert standby.handle(nodes(1), 0) == []
    assert standby.next_deadline_ms() is None


def test_nobody_campaigns_under_a_holder_that_is_there() -> None:
    standby = Standby(2)
    standby.handle(ControllerChanged(1, 4), 0)
    assert standby.handle(nodes(1, 2, 3), 0) == []
    assert standby.next_deadline_ms() is None
    assert standby.handle(Ticked(), 60_000) == []


def test_the_lowest_node_campaigns_when_the_holder_has_ended_and_the_next_a_little_later() -> None:
    first, second = Standby(2), Standby(3)
    for standby in (first, second):
        standby.handle(ControllerChanged(1, 4), 0)
        standby.handle(nodes(1, 2, 3), 0)
    assert first.handle(nodes(2, 3), 1_000) == [Campaign(4)]
    assert second.handle(nodes(2, 3), 1_000) == []
    due_ms = second.next_deadline_ms()
    assert due_ms == 1_000 + CAMPAIGN_STAGGER_MS
    assert second.handle(Ticked(), due_ms - 1) == []
    assert second.handle(Ticked(), due_ms) == [Campaign(4)]


def test_the_next_node_stays_behind_once_the_first_has_the_term() -> None:
    standby = Standby(3)
    standby.handle(ControllerChanged(1, 4), 0)
    standby.handle(nodes(2, 3), 0)
    assert standby.handle(ControllerChanged(2, 5), 50) == []
    assert standby.next_deadline_ms() is None
    assert standby.handle(Ticked(), 60_000) == []


def test_a_holder_that_leaves_is_followed_by_one_that_stays() -> None:
    standby = Standby(2)
    standby.handle(ControllerChanged(1, 4), 0)
    assert standby.handle(nodes(1, 2, leaving=(1,)), 0) == [Campaign(4)]


def test_a_node_that_leaves_campaigns_last_and_under_no_other_that_leaves() -> None:
    leaving = Standby(2)
    leaving.handle(ControllerChanged(1, 4), 0)
    assert leaving.handle(nodes(1, 2, leaving=(1, 2)), 0) == []
    assert leaving.handle(nodes(2, 3, leaving=(2,)), 0) == []
    assert leaving.next_deadline_ms() == CAMPAIGN_STAGGER_MS


def test_one_campaign_is_under_way_at_a_time_and_a_failed_one_is_repeated() -> None:
    standby = Standby(1)
    assert standby.handle(nodes(1), 0) == [Campaign(0)]
    assert standby.handle(Ticked(), 5_000) == []
    assert standby.handle(CampaignFailed(), 5_000) == []
    due_ms = standby.next_deadline_ms()
    assert due_ms == 5_000 + CAMPAIGN_STAGGER_MS
    assert standby.handle(Ticked(), due_ms) == [Campaign(0)]
    assert standby.handle(CampaignDone(ControllerChanged(1, 1)), due_ms) == []
    assert standby.handle(Ticked(), 60_000) == []


def test_an_answer_of_an_older_term_takes_nothing_back() -> None:
    standby = Standby(2)
    standby.handle(nodes(1, 2), 0)
    standby.handle(ControllerChanged(1, 7), 0)
    assert standby.handle(ControllerChanged(9, 6), 0) == []
    assert standby.next_deadline_ms() is None


def silent_standby() -> Standby:
    """One that has run without a break for a while; its controller was heard at 1,000."""
    standby = Standby(2)
    standby.handle(ControllerChanged(1, 4), 0)
    standby.handle(nodes(1, 2), 0)
    for now_ms in range(TICK_MS, 1_000 + TICK_MS, TICK_MS):
        standby.handle(ControllerHeard(4, now_ms), now_ms)
        standby.handle(Ticked(), now_ms)
    return standby


def test_a_holder_that_answers_nothing_is_followed_by_another() -> None:
    standby = silent_standby()
    for now_ms in range(1_000 + TICK_MS, 1_000 + SILENT_MS, TICK_MS):
        assert standby.handle(Ticked(), now_ms) == []
    assert standby.handle(Ticked(), 1_000 + SILENT_MS) == [Campaign(4)]


def test_an_answer_counts_from_when_it_came_not_from_when_it_is_looked_at() -> None:
    standby = silent_standby()
    for now_ms in range(1_000 + TICK_MS, 1_000 + SILENT_MS, TICK_MS):
        standby.handle(ControllerHeard(4, 1_000), now_ms)
        assert standby.heard_term(now_ms) == 4
        assert standby.handle(Ticked(), now_ms) == []
    assert standby.heard_term(1_000 + SILENT_MS) == 0
    assert standby.handle(Ticked(), 1_000 + SILENT_MS) == [Campaign(4)]


def test_an_answer_under_another_term_does_not_show_that_the_holder_is_there() -> None:
    standby = silent_standby()
    for now_ms in range(1_000 + TICK_MS, 1_000 + SILENT_MS, TICK_MS):
        standby.handle(ControllerHeard(3, now_ms), now_ms)
        standby.handle(Ticked(), now_ms)
    assert standby.handle(Ticked(), 1_000 + SILENT_MS) == [Campaign(4)]
