"""The native loop over sockets can be woken from a wait, and goes on with it afterwards."""

from __future__ import annotations

import os
import socket
import threading

import numpy as np

from fourlane._native import SocketMesh

DONE, WOKEN = 0, 6


def test_a_wait_ends_when_another_descriptor_is_readable_and_can_be_taken_up_again() -> None:
    ours, theirs = socket.socketpair()
    wake = os.eventfd(0, os.EFD_NONBLOCK)
    with ours, theirs:
        meshes = SocketMesh([-1, ours.fileno()]), SocketMesh([theirs.fileno(), -1])
        sent, received = np.arange(16, dtype=np.uint8), np.zeros((2, 8), dtype=np.uint8)
        operation = meshes[0].exchange(2, sent, [8, 8], received.reshape(-1), [8, 8])
        threading.Timer(0.05, os.eventfd_write, (wake, 1)).start()
        assert meshes[0].wait(operation, 5000, wake)[0] == WOKEN
        assert meshes[0].wait(operation, 5000, wake)[0] == WOKEN, "it is readable until somebody reads it"
        os.eventfd_read(wake)
        # what began meanwhile goes behind what is under way
        more = np.zeros((2, 4), dtype=np.uint8)
        later = meshes[0].gather(1, np.full(4, 7, dtype=np.uint8), more.reshape(-1))
        their_rows, their_more = np.zeros(16, dtype=np.uint8), np.zeros(8, dtype=np.uint8)
        theirs_first = meshes[1].exchange(2, np.full(16, 9, dtype=np.uint8), [8, 8], their_rows, [8, 8])
        theirs_later = meshes[1].gather(1, np.full(4, 5, dtype=np.uint8), their_more)
        assert meshes[0].wait(operation, 5000, wake)[0] == DONE
        assert received[1].tolist() == [9] * 8
        assert meshes[0].wait(later, 5000, wake)[0] == DONE
        assert more.tolist() == [[7] * 4, [5] * 4]
        assert meshes[1].wait(theirs_first, 5000)[0] == meshes[1].wait(theirs_later, 5000)[0] == DONE
        assert their_rows[:8].tolist() == list(range(8, 16))
    os.close(wake)
