"""Timestamps that go on where those of a file begin anew, as in recordings joined end to end."""

from typing import Any, NamedTuple

from av.packet import Packet


class Place(NamedTuple):
    """Where a packet lies in such a file.

    Attributes:
      position: its byte; None where the container does not tell.
      shift: what is added to its timestamps, in ticks.
    """

    position: int | None
    shift: int


class Timeline:
    """Follows the packets of a stream in their order in the file.

    Args:
      shift: of the packet to begin with, in ticks.
    """

    def __init__(self, shift: int = 0):
        self._shift = shift
        # Of the packet before, and the end of the pictures so far, both shifted.
        self._decoded: int | None = None
        self._shown = 0

    def shift(self, packet: "Packet[Any]") -> int:
        """What to add to the next packet's timestamps, in ticks: more from each new beginning on,
        which a step back of the decoding timestamps shows."""
        if packet.dts is None or packet.pts is None:
            return self._shift
        if self._decoded is not None and packet.dts + self._shift < self._decoded:
            self._shift = self._shown - packet.pts
        self._decoded = packet.dts + self._shift
        self._shown = max(self._shown, packet.pts + self._shift + (packet.duration or 1))
        return self._shift
