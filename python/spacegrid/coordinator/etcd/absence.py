"""Who has been without a lease since when; decides when a registration is surely over.

Pure: images and times in, incarnations out. Why this is safe is in options.py (`EtcdTimes`) and
docs/adr/ (etcd).
"""

from __future__ import annotations

from spacegrid.coordinator.etcd.image import Image

__all__ = ["Absences"]

#: Milliseconds by which each further node waits longer, so that not all send the same change.
RANK_MS = 200


class Absences:
    """Nodes that this one has seen without a lease."""

    def __init__(self, end_ms: int) -> None:
        """See none yet.

        Args:
            end_ms: How long a node must have been without a lease before it is ended.
        """
        self._end_ms = end_ms
        #: Incarnation to the revision of its record, and when it was first seen without a lease.
        self._since: dict[int, tuple[int, int]] = {}

    def observe(self, image: Image, now_ms: int, own: int = 0) -> list[tuple[int, int]]:
        """Look at an image that was true at some moment before now.

        Args:
            image: What this node knows.
            now_ms: Time of a clock that goes on while the machine sleeps.
            own: Incarnation of this node, which never ends itself here.

        Returns:
            Those to end now, each with the revision of the record that it was decided about. A node
            that came back in between has written its record again and counts from the beginning.
        """
        absent = {
            incarnation: image.mod(image.keys.node(incarnation))
            for incarnation in image.nodes
            if incarnation not in image.alive and incarnation != own
        }
        self._since = {
            incarnation: (mod, self._first_seen(incarnation, mod, now_ms))
            for incarnation, mod in absent.items()
        }
        rank = sum(1 for incarnation in image.alive if incarnation < own)
        wait_ms = self._end_ms + rank * RANK_MS
        return [
            (incarnation, mod)
            for incarnation, (mod, since_ms) in sorted(self._since.items())
            if now_ms - since_ms >= wait_ms
        ]

    def _first_seen(self, incarnation: int, mod: int, now_ms: int) -> int:
        known = self._since.get(incarnation)
        return known[1] if known is not None and known[0] == mod else now_ms
