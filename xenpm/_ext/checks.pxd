"""What is checked before C is called: numbers, which C would cut to fit, and whose handle it is."""

from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "own_pid.h" nogil:
    int xenpm_own_pid

cdef enum:
    DOMID_FIRST_RESERVED = 0x7FF0  # public/xen.h


cdef inline uint64_t to_uint(object number, str what, uint64_t most) except? 0xffffffffffffffff:
    """A number from 0 to `most`."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{what} must be an int, not {type(number).__name__}")
    cdef int overflow = 0
    cdef int64_t value = PyLong_AsLongLongAndOverflow(number, &overflow)
    if overflow == 0 and value >= 0 and <uint64_t>value <= most:
        return <uint64_t>value
    if not 0 <= number <= most:
        raise ValueError(f"{what} must be from 0 to {most}, not {number}")
    return number


cdef inline uint32_t to_uint32(object number, str what) except? 0xffffffff:
    """A number of 32 bits."""
    return <uint32_t>to_uint(number, what, 0xffffffff)


cdef inline uint32_t to_domid(object domid) except? 0xffffffff:
    """The number of a real domain."""
    return <uint32_t>to_uint(domid, "domid", DOMID_FIRST_RESERVED - 1)
