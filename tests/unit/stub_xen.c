/*
 * Stands before libxenctrl, libxenguest, libxenstore and libxenlight (LD_PRELOAD), so that the
 * extension modules can be driven without Xen.  Every function first waits at the gate, if one is set.
 */
#include <errno.h>
#include <libxl.h>
#include <libxl_event.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xenctrl.h>
#include <xenevtchn.h>
#include <xenforeignmemory.h>
#include <xenstore.h>

int stub_gate = -1;     /* a call waits here for a byte */
int stub_reached = -1;  /* and says here that it does */
int stub_error = 0;     /* if set, calls fail with this errno */
int stub_domains = 1;   /* with the domids 0, 2, 4, ... */

static xentoollog_logger *logger;
static xc_error last_error;
static char handle;

static void wait_at_gate(void)
{
    char byte = 0;

    if (stub_gate < 0)
        return;
    if (write(stub_reached, &byte, 1) != 1 || read(stub_gate, &byte, 1) != 1)
        _exit(9);
}

static void say(const char *format, ...)
{
    va_list arguments;

    if (!logger)
        return;
    va_start(arguments, format);
    logger->vmessage(logger, XTL_WARN, -1, "stub", format, arguments);
    va_end(arguments);
}

static int answer(const char *name)
{
    wait_at_gate();
    say("%s was called", name);
    if (!stub_error)
        return 0;
    last_error.code = XC_INTERNAL_ERROR;
    snprintf(last_error.message, sizeof last_error.message, "%s was made to fail", name);
    errno = stub_error;
    return -1;
}

xc_interface *xc_interface_open(xentoollog_logger *l, xentoollog_logger *b, unsigned flags)
{
    (void)b, (void)flags;
    logger = l;
    return answer(__func__) ? NULL : (xc_interface *)&handle;
}

int xc_interface_close(xc_interface *xch)
{
    (void)xch;
    return answer(__func__);
}

const xc_error *xc_get_last_error(xc_interface *xch)
{
    (void)xch;
    return &last_error;
}

void xc_clear_last_error(xc_interface *xch)
{
    (void)xch;
    memset(&last_error, 0, sizeof last_error);
}

int xc_version(xc_interface *xch, int cmd, void *arg)
{
    (void)xch, (void)cmd, (void)arg;
    return answer(__func__) ? -1 : 4 << 16 | 17;
}

int xc_domain_getinfolist(xc_interface *xch, uint32_t first, unsigned int most,
                          xc_domaininfo_t *info)
{
    unsigned int count = 0;
    uint32_t domid;

    (void)xch;
    if (answer(__func__))
        return -1;
    for (domid = (first + 1) / 2 * 2; domid < 2u * stub_domains && count < most; domid += 2) {
        memset(&info[count], 0, sizeof info[count]);
        info[count].domain = domid;
        info[count].flags = domid % 4 ? XEN_DOMINF_xs_domain : XEN_DOMINF_running;
        memset(info[count].handle, domid & 255, sizeof info[count].handle);
        count++;
    }
    return count;
}

#define DOMAIN_CALL(name, ...) \
    int name(xc_interface *xch, uint32_t domid, ##__VA_ARGS__) { return answer(__func__); }

#pragma GCC diagnostic ignored "-Wunused-parameter"
DOMAIN_CALL(xc_domain_pause)
DOMAIN_CALL(xc_domain_unpause)
DOMAIN_CALL(xc_domain_send_trigger, uint32_t trigger, uint32_t vcpu)
DOMAIN_CALL(xc_domain_soft_reset)
DOMAIN_CALL(xc_vcpu_getinfo, uint32_t vcpu, xc_vcpuinfo_t *info)
DOMAIN_CALL(xc_evtchn_reset)
int xc_evtchn_status(xc_interface *xch, xc_evtchn_status_t *status) { return answer(__func__); }
xenforeignmemory_handle *xenforeignmemory_open(xentoollog_logger *l, unsigned flags)
{ return (xenforeignmemory_handle *)&handle; }
int xenforeignmemory_close(xenforeignmemory_handle *memory) { return 0; }
void *xenforeignmemory_map(xenforeignmemory_handle *memory, uint32_t domid, int prot, size_t pages,
                           const xen_pfn_t gfns[], int errors[])
{ static char ring[4096]; return answer(__func__) ? NULL : ring; }
int xenforeignmemory_unmap(xenforeignmemory_handle *memory, void *address, size_t pages)
{ return 0; }
xenevtchn_handle *xenevtchn_open(xentoollog_logger *l, unsigned flags)
{ return (xenevtchn_handle *)&handle; }
int xenevtchn_close(xenevtchn_handle *xce) { return 0; }
int xenevtchn_notify(xenevtchn_handle *xce, evtchn_port_t port) { return 0; }
int xc_suspend_evtchn_init_exclusive(xc_interface *xch, xenevtchn_handle *xce, uint32_t domid,
                                     int port, int *lock)
{ return answer(__func__); }
int xc_suspend_evtchn_release(xc_interface *xch, xenevtchn_handle *xce, uint32_t domid, int port,
                              int *lock)
{ return 0; }
DOMAIN_CALL(xc_domain_subscribe_for_suspend, evtchn_port_t port)
DOMAIN_CALL(xc_domain_shutdown, int reason)
DOMAIN_CALL(xc_domain_resume, int fast)
DOMAIN_CALL(xc_hvm_param_get, uint32_t param, uint64_t *value)
DOMAIN_CALL(xc_hvm_param_set, uint32_t param, uint64_t value)
DOMAIN_CALL(xc_evtchn_alloc_unbound, uint32_t remote)
DOMAIN_CALL(xc_dom_gnttab_seed, bool is_hvm, xen_pfn_t console, xen_pfn_t store,
            uint32_t console_domid, uint32_t store_domid)

/* The store: every request fails, after having waited at the gate. */

#define REQUEST(type, failure, name, ...) \
    type name(struct xs_handle *h, ##__VA_ARGS__) \
    { wait_at_gate(); errno = EIO; return failure; }

struct xs_handle *xs_open(unsigned long flags)
{
    wait_at_gate();
    return (struct xs_handle *)&handle;
}

void xs_close(struct xs_handle *h)
{
    wait_at_gate();
}

REQUEST(int, -1, xs_fileno)
REQUEST(void *, NULL, xs_read, xs_transaction_t t, const char *path, unsigned int *length)
REQUEST(char **, NULL, xs_directory, xs_transaction_t t, const char *path, unsigned int *count)
REQUEST(struct xs_permissions *, NULL, xs_get_permissions, xs_transaction_t t, const char *path,
        unsigned int *count)
REQUEST(char **, NULL, xs_check_watch)
REQUEST(bool, false, xs_write, xs_transaction_t t, const char *path, const void *data,
        unsigned int length)
REQUEST(bool, false, xs_mkdir, xs_transaction_t t, const char *path)
REQUEST(bool, false, xs_rm, xs_transaction_t t, const char *path)
REQUEST(bool, false, xs_set_permissions, xs_transaction_t t, const char *path,
        struct xs_permissions *perms, unsigned int count)
REQUEST(bool, false, xs_watch, const char *path, const char *token)
REQUEST(bool, false, xs_unwatch, const char *path, const char *token)
REQUEST(bool, false, xs_transaction_end, xs_transaction_t t, bool abort)
REQUEST(bool, false, xs_introduce_domain, unsigned int domid, unsigned long gfn, unsigned int port)
REQUEST(bool, false, xs_resume_domain, unsigned int domid)
REQUEST(bool, false, xs_release_domain, unsigned int domid)
REQUEST(xs_transaction_t, XBT_NULL, xs_transaction_start)

/* libxl: a call fails with stub_error, which is one of libxl's numbers then. */

static const libxl_childproc_hooks *hooks;

static int answer_of_libxl(const char *name)
{
    wait_at_gate();
    if (logger) {
        say("%s was called", name);
        if (stub_error)
            logger->vmessage(logger, XTL_ERROR, -1, "stub", "it was made to fail", (va_list){});
    }
    return stub_error;
}

int libxl_ctx_alloc(libxl_ctx **ctx, int version, unsigned flags, xentoollog_logger *l)
{
    logger = l;
    *ctx = stub_error ? NULL : (libxl_ctx *)&handle;
    return answer_of_libxl(__func__);
}

int libxl_ctx_free(libxl_ctx *ctx)
{
    return ctx ? answer_of_libxl(__func__) : 0;
}

void libxl_childproc_setmode(libxl_ctx *ctx, const libxl_childproc_hooks *h, void *user)
{
    hooks = h;
}

int stub_sigchld_owner(void)
{
    return hooks ? hooks->chldowner : -1;
}

int stub_fork(void)
{
    return hooks->fork_replacement(NULL) == -1 ? errno : 0;
}

int libxl_retrieve_domain_configuration(libxl_ctx *ctx, uint32_t domid,
                                        libxl_domain_config *config, const libxl_asyncop_how *how)
{
    return answer_of_libxl(__func__);
}

char *libxl_domain_config_to_json(libxl_ctx *ctx, libxl_domain_config *config)
{
    return strdup("{}");
}

libxl_device_pci *libxl_device_pci_assignable_list(libxl_ctx *ctx, int *count)
{
    libxl_device_pci *devices;

    *count = 0;
    if (answer_of_libxl(__func__))
        return NULL;
    *count = 2;
    devices = calloc(2, sizeof *devices);
    devices[1].dev = 16;
    return devices;
}

/* Operations end in the next wait, with stub_outcome; of the domain that is made, the domid is 7. */

int stub_outcome = 0;
static libxl_asyncop_how under_way;

static int begin(const char *name, const libxl_asyncop_how *how)
{
    under_way = *how;
    return answer_of_libxl(name);
}

int libxl_domain_suspend(libxl_ctx *ctx, uint32_t domid, int fd, int flags,
                         const libxl_asyncop_how *how)
{
    return begin(__func__, how);
}

int libxl_domain_create_restore(libxl_ctx *ctx, libxl_domain_config *config, uint32_t *domid,
                                int fd, int back, const libxl_domain_restore_params *params,
                                const libxl_asyncop_how *how, const libxl_asyncprogress_how *console)
{
    *domid = 7;
    return params->stream_version == 2 && config->c_info.domid == INVALID_DOMID
           ? begin(__func__, how) : ERROR_INVAL;
}

int libxl_domain_resume(libxl_ctx *ctx, uint32_t domid, int cancel, const libxl_asyncop_how *how)
{
    return cancel == 1 ? begin(__func__, how) : ERROR_INVAL;
}

int libxl_domain_unpause(libxl_ctx *ctx, uint32_t domid, const libxl_asyncop_how *how)
{
    return begin(__func__, how);
}

int libxl_domain_destroy(libxl_ctx *ctx, uint32_t domid, const libxl_asyncop_how *how)
{
    return begin(__func__, how);
}

int libxl_domain_config_from_json(libxl_ctx *ctx, libxl_domain_config *config, const char *text)
{
    return strcmp(text, "{}") ? ERROR_FAIL : 0;
}

int libxl_domain_soft_reset(libxl_ctx *ctx, libxl_domain_config *config, uint32_t domid,
                            const libxl_asyncop_how *how, const libxl_asyncprogress_how *console)
{
    return how ? ERROR_INVAL : answer_of_libxl(__func__);
}

int libxl_domid_valid_guest(uint32_t domid)
{
    return domid > 0 && domid < 0x7ff0;
}

int libxl_osevent_beforepoll(libxl_ctx *ctx, int *count, struct pollfd *fds, int *timeout,
                             struct timeval now)
{
    int room = *count;

    *count = 20;
    return room < 20 ? ERROR_BUFFERFULL : (*count = 0, 0);
}

void libxl_osevent_afterpoll(libxl_ctx *ctx, int count, const struct pollfd *fds,
                             struct timeval now)
{
    if (stub_outcome == 1)  /* not yet */
        return;
    say("it went %s", stub_outcome ? "wrong" : "well");
    if (stub_outcome) {
        logger->vmessage(logger, XTL_ERROR, -1, "stub", "no space left", (va_list){});
        logger->vmessage(logger, XTL_ERROR, -1, "stub", "so it failed", (va_list){});
    }
    under_way.callback(ctx, stub_outcome, under_way.u.for_callback);
}

int libxl_ao_abort(libxl_ctx *ctx, const libxl_asyncop_how *how)
{
    stub_outcome = how->u.for_callback == under_way.u.for_callback ? ERROR_ABORTED : 0;
    return answer_of_libxl(__func__);
}
