/*
 * A logger for Xen's libraries that only copies: their callbacks may come while the GIL is not
 * held, so the text waits here until the caller has it back and hands it to Python's logging.
 */
#ifndef XENPM_LOGBUF_H
#define XENPM_LOGBUF_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <xentoollog.h>

#define XENPM_LOGBUF_BYTES 8192

struct xenpm_logbuf {
    xentoollog_logger vtable;   /* must be first: the libraries see only this */
    xentoollog_level min_level;
    unsigned dropped;           /* messages that found no room */
    size_t used;
    char text[XENPM_LOGBUF_BYTES];  /* records: one byte level, message, NUL */
};

static void xenpm_logbuf_vmessage(xentoollog_logger *logger, xentoollog_level level, int errnoval,
                                  const char *context, const char *format, va_list al)
{
    struct xenpm_logbuf *buf = (struct xenpm_logbuf *)logger;
    size_t room = sizeof buf->text - buf->used;
    int n;

    (void)errnoval;
    (void)context;
    if (level < buf->min_level)
        return;
    if (room < 128) {
        buf->dropped++;
        return;
    }
    buf->text[buf->used] = (char)level;
    n = vsnprintf(buf->text + buf->used + 1, room - 1, format, al);
    if (n < 0)
        return;
    if ((size_t)n > room - 2)
        n = (int)(room - 2);
    buf->used += 1 + (size_t)n + 1;
}

static void xenpm_logbuf_progress(xentoollog_logger *logger, const char *context,
                                  const char *doing_what, int percent, unsigned long done,
                                  unsigned long total)
{
    (void)logger;
    (void)context;
    (void)doing_what;
    (void)percent;
    (void)done;
    (void)total;
}

static void xenpm_logbuf_destroy(xentoollog_logger *logger)
{
    free(logger);
}

static inline struct xenpm_logbuf *xenpm_logbuf_new(xentoollog_level min_level)
{
    struct xenpm_logbuf *buf = calloc(1, sizeof *buf);

    if (buf) {
        buf->vtable.vmessage = xenpm_logbuf_vmessage;
        buf->vtable.progress = xenpm_logbuf_progress;
        buf->vtable.destroy = xenpm_logbuf_destroy;
        buf->min_level = min_level;
    }
    return buf;
}

#endif
