"""Hands what a library has logged (see logbuf.h) over to Python's logging."""

import logging

from libc.string cimport strlen

from xenpm._ext.c_xentoollog cimport *


cdef inline object _level(int level):
    """Python's level for one of xentoollog.h."""
    if level == XTL_NOTICE:
        return logging.INFO
    if level == XTL_WARN:
        return logging.WARNING
    if level == XTL_CRITICAL:
        return logging.CRITICAL
    return logging.DEBUG  # XTL_INFO is chatty, and every XTL_ERROR is an exception already


cdef inline str drain_log(object log, str library, const char *text, size_t used,
                          unsigned dropped, bint first=False):
    """Hand a library's log over to Python; returns the last error in it, or the first."""
    cdef size_t at = 0
    cdef const char *record
    error = ""
    while at < used:
        record = text + at
        line = (<bytes>(record + 1)).decode("utf-8", "replace")
        if record[0] >= XTL_ERROR and not (first and error):
            error = line
        log.log(_level(record[0]), "%s", line)
        at += 1 + strlen(record + 1) + 1
    if dropped:
        log.warning("%d messages of %s were lost", dropped, library)
    return error
