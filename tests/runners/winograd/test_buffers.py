"""Memory that is kept for later volumes."""

import numpy as np

from medals_rt.runners.winograd.buffers import Buffer, Buffers


def test_a_volume_lies_at_either_end() -> None:
    buffer = Buffer((8, 2, 3, 16), "float32", 4)
    assert buffer.first.shape == buffer.last.shape == (8, 2, 3, 16)
    assert np.may_share_memory(buffer.first[4:], buffer.last[:4])
    assert not np.may_share_memory(buffer.first[:4], buffer.last)
    assert buffer.other(buffer.first) is buffer.last
    assert buffer.other(buffer.last) is buffer.first


def test_memory_is_taken_again_for_the_same_shape_until_it_is_released() -> None:
    buffers = Buffers()
    buffer = buffers.take((8, 2, 3, 16), "float32", 4)
    assert buffers.take((8, 2, 3, 16), "float32", 4) is not buffer
    buffers.give_back(buffer)
    for other in (((8, 2, 4, 16), "float32", 4), ((8, 2, 3, 16), "uint16", 4)):
        assert buffers.take(*other) is not buffer
    assert buffers.take((8, 2, 3, 16), "float32", 8) is not buffer
    assert buffers.take((8, 2, 3, 16), "float32", 4) is buffer
    buffers.give_back(buffer)
    buffers.release()
    assert buffers.take((8, 2, 3, 16), "float32", 4) is not buffer
