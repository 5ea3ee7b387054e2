"""Numbers are checked before C sees them: C would cut them to fit, and Cython a float."""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    DOMID_FIRST_RESERVED = 0x7FF0  # public/xen.h


cdef inline uint64_t to_uint(object number, str what, uint64_t most) except? 0xffffffffffffffff:
    """A number from 0 to `most`."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{what} must be an int, not {type(number).__name__}")
    if not 0 <= number <= most:
        raise ValueError(f"{what} must be from 0 to {most}, not {number}")
    return number


cdef inline uint32_t to_uint32(object number, str what) except? 0xffffffff:
    """A number of 32 bits."""
    return <uint32_t>to_uint(number, what, 0xffffffff)


cdef inline uint32_t to_domid(object domid) except? 0xffffffff:
    """The number of a real domain."""
    return <uint32_t>to_uint(domid, "domid", DOMID_FIRST_RESERVED - 1)
