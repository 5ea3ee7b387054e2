/* The only place that knows how libxenlight and libxlutil differ between releases. */
#ifndef XENPM_COMPAT_XL_H
#define XENPM_COMPAT_XL_H

#include <libxl.h>
#include <libxl_event.h>
#include <libxlutil.h>

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

/* What xl, which parses these by itself, does with some keys: it has changed along the way. */
#define XENPM_XL_VIF_MTU (XENPM_XEN_MINOR >= 15)
#define XENPM_XL_P9_PAIRS (XENPM_XEN_MINOR >= 18)
#define XENPM_XL_P9_TYPES (XENPM_XEN_MINOR >= 19)
#define XENPM_XL_VIRTIO (XENPM_XEN_MINOR >= 18)

/*
 * libxlutil (4.15 and later) reads a PCI address with a sscanf whose last conversion, %n, is not
 * reached when the dot is missing, and goes on with a number that was never set.
 */
static inline bool xenpm_bdf_lacks_dot(const char *bdf)
{
    unsigned int a, b, c;
    int end = -1;

    if (sscanf(bdf, "%x:%x:%x.%n", &a, &b, &c, &end) == 3)
        return end < 0;
    end = -1;
    return sscanf(bdf, "%x:%x.%n", &a, &b, &end) == 2 && end < 0;
}

/* 0, or one of libxl's error numbers; says nothing. */
static inline int xenpm_pci_parse(XLU_Config *cfg, libxl_device_pci *pci, const char *spec)
{
#if XENPM_XEN_MINOR >= 15
    const char *key;

    if (xenpm_bdf_lacks_dot(spec))
        return ERROR_INVAL;
    for (key = strstr(spec, "bdf="); key; key = strstr(key, "bdf=")) {
        key += strlen("bdf=");
        if (xenpm_bdf_lacks_dot(key))
            return ERROR_INVAL;
    }
    return xlu_pci_parse_spec_string(cfg, pci, spec);
#else
    const char *all = strstr(spec, ".*");

    /* libxlutil knows this form, and then fails an assertion of its own about it, as xl does. */
    if (all && strchr("@,", all[2]))
        return ERROR_INVAL;
    return xlu_pci_parse_bdf(cfg, pci, spec);
#endif
}

/* libxl's own for this came with 4.15. */
static inline void xenpm_pci_list_free(libxl_device_pci *list, int count)
{
    int i;

    for (i = 0; i < count; i++)
        libxl_device_pci_dispose(&list[i]);
    free(list);
}

/*
 * libxl forks only to wait for a lock that somebody else has.  It must not: nobody would reap that
 * child, and the wait has no deadline.  Told that it cannot fork, it gives up at once.
 */
static inline pid_t xenpm_no_fork(void *user)
{
    (void)user;
    errno = EAGAIN;
    return -1;
}

/* With this owner libxl never touches the process's SIGCHLD. */
static const libxl_childproc_hooks xenpm_childproc_hooks = {
    .chldowner = libxl_sigchld_owner_mainloop,
    .fork_replacement = xenpm_no_fork,
};

/* An operation under way: libxl's callback only notes its end, for it may run no Python. */
struct xenpm_operation {
    bool done;
    int rc;
};

static inline void xenpm_operation_ended(libxl_ctx *ctx, int rc, void *operation)
{
    struct xenpm_operation *it = operation;

    (void)ctx;
    it->done = true;
    it->rc = rc;
}

static inline libxl_asyncop_how xenpm_how(struct xenpm_operation *operation)
{
    libxl_asyncop_how how = { .callback = xenpm_operation_ended };

    how.u.for_callback = operation;
    return how;
}

/*
 * Wait once for what libxl waits for, and let it go on with that; at most that long, and not beyond
 * a signal.  0, or one of libxl's error numbers.
 */
static inline int xenpm_wait(libxl_ctx *ctx, int timeout_ms)
{
    struct pollfd *fds = NULL, *more;
    struct timeval now;
    int rc, count, room = 8, timeout;

    do {
        more = realloc(fds, room * sizeof *fds);
        if (!more) {
            free(fds);
            return ERROR_NOMEM;
        }
        fds = more;
        count = room;
        timeout = timeout_ms;
        gettimeofday(&now, NULL);
        rc = libxl_osevent_beforepoll(ctx, &count, fds, &timeout, now);
        room = count;
    } while (rc == ERROR_BUFFERFULL);
    if (!rc) {
        if (poll(fds, count, timeout) < 0)
            for (room = 0; room < count; room++)
                fds[room].revents = 0;
        gettimeofday(&now, NULL);
        libxl_osevent_afterpoll(ctx, count, fds, now);
    }
    free(fds);
    return rc;
}

/* Begins to resume a domain cooperatively. */
static inline int xenpm_resume(libxl_ctx *ctx, uint32_t domid, const libxl_asyncop_how *how)
{
    return libxl_domain_resume(ctx, domid, 1, how);
}

/* Begins to make a domain of libxl's stream, in the version that Xen 4.6 and later write. */
static inline int xenpm_restore(libxl_ctx *ctx, libxl_domain_config *config, uint32_t *domid,
                                int fd, const libxl_asyncop_how *how)
{
    libxl_domain_restore_params params;
    int rc;

    libxl_domain_restore_params_init(&params);
    params.stream_version = 2;
    if (!libxl_domid_valid_guest(config->c_info.domid))
        config->c_info.domid = INVALID_DOMID; /* some new one */
    rc = libxl_domain_create_restore(ctx, config, domid, fd, -1, &params, how, NULL);
    libxl_domain_restore_params_dispose(&params);
    return rc;
}

#endif
