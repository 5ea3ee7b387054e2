/* The floor: one guest suspended and resumed by the calls that xenpm makes, and by nothing else.
 *
 * Usage: floor DOMID pv|pvh.  Each line on stdin is "suspend" or "resume"; the answer is how many
 * nanoseconds that took.  It believes all that it is told and undoes nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xenctrl.h>
#include <xenguest.h>
#include <xenstore.h>

enum { DOMAINS = 256, CALLBACK_IRQ = 0 };

static xc_interface *xch;
static struct xs_handle *store;
static uint32_t domid;
static int pvh;

static void die(const char *what)
{
	fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
	exit(1);
}

static const char *home(const char *below)
{
	static char path[128];
	snprintf(path, sizeof path, "/local/domain/%u%s", domid, below);
	return path;
}

/* Whether a node has that value; NULL: any. */
static int holds(xs_transaction_t transaction, const char *path, const char *value)
{
	unsigned size;
	char *found = xs_read(store, transaction, path, &size);
	int same = found && (!value || !strcmp(found, value));
	if (!found && errno != ENOENT)
		die(path);
	free(found);
	return same;
}

static void list(const char *path)
{
	unsigned number;
	char **names = xs_directory(store, XBT_NULL, path, &number);
	if (!names && errno != ENOENT)
		die(path);
	free(names);
}

static int suspended(const xc_domaininfo_t *info)
{
	return info->flags & XEN_DOMINF_shutdown &&
	       (info->flags >> XEN_DOMINF_shutdownshift & XEN_DOMINF_shutdownmask) ==
		       SHUTDOWN_suspend;
}

static int look(void)
{
	xc_domaininfo_t info;
	if (xc_domain_getinfolist(xch, domid, 1, &info) != 1 || info.domain != domid)
		die("xc_domain_getinfolist");
	return suspended(&info);
}

static int look_at_all(void)
{
	static xc_domaininfo_t infos[DOMAINS];
	int found = xc_domain_getinfolist(xch, 0, DOMAINS, infos);
	for (int i = 0; i < found; i++)
		if (infos[i].domain == domid)
			return suspended(&infos[i]);
	die("xc_domain_getinfolist");
	return 0;
}

static void interrupt(void)
{
	uint64_t value;
	if (pvh && (xc_hvm_param_get(xch, domid, CALLBACK_IRQ, &value) || !value))
		die("HVM_PARAM_CALLBACK_IRQ");
}

static void devices(void)
{
	char path[64];
	snprintf(path, sizeof path, "/local/domain/0/backend/pci/%u/0", domid);
	list(path);
	list(home("/backend"));
}

static void suspend(void)
{
	if (look())
		die("it is suspended already");
	holds(XBT_NULL, home("/xenpm/reinit"), NULL);
	holds(XBT_NULL, home("/target"), NULL);
	holds(XBT_NULL, home("/control/feature-suspend"), NULL);
	interrupt();
	devices();
	holds(XBT_NULL, home("/device/suspend/event-channel"), NULL);
	if (!xs_watch(store, home("/control/shutdown"), "answer"))
		die("xs_watch");
	xs_transaction_t transaction = xs_transaction_start(store);
	if (transaction == XBT_NULL || !holds(transaction, home("/control/shutdown"), "") ||
	    !xs_write(store, transaction, home("/control/shutdown"), "suspend", 7) ||
	    !xs_transaction_end(store, transaction, 0) ||
	    !xs_watch(store, "@releaseDomain", "domains"))
		die("the request");
	for (int taken = 0, down = 0; !down;) {
		struct pollfd one = { xs_fileno(store), POLLIN, 0 };
		int answer = 0, domains = 0;
		char **event;
		if (poll(&one, 1, 30000) != 1)
			die("poll");
		while ((event = xs_check_watch(store))) {
			answer |= !strcmp(event[XS_WATCH_TOKEN], "answer");
			domains |= !strcmp(event[XS_WATCH_TOKEN], "domains");
			free(event);
		}
		if (domains)
			down = look_at_all();
		if (answer && !taken)
			taken = !holds(XBT_NULL, home("/control/shutdown"), "suspend");
	}
	if (!xs_unwatch(store, home("/control/shutdown"), "answer") ||
	    !xs_unwatch(store, "@releaseDomain", "domains"))
		die("xs_unwatch");
}

/* The notes of a PV guest's kernel image, which say whether it can, are read by no library of Xen. */
static void resume(void)
{
	for (int i = 0; i < 2; i++) {
		if (!look())
			die("it is not suspended");
		holds(XBT_NULL, home("/xenpm/reinit"), NULL);
		interrupt();
	}
	if (!pvh) {
		unsigned size;
		char path[160], *vm = xs_read(store, XBT_NULL, home("/vm"), &size);
		snprintf(path, sizeof path, "%s/image/kernel", vm ? vm : "");
		holds(XBT_NULL, path, NULL);
		free(vm);
	}
	if (xc_domain_resume(xch, domid, 1))
		die("xc_domain_resume");
	if (!xs_resume_domain(store, domid))
		die("xs_resume_domain");
	devices();
}

static int64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

int main(int argc, char **argv)
{
	char line[16];
	if (argc != 3)
		return 2;
	domid = strtoul(argv[1], NULL, 10);
	pvh = !strcmp(argv[2], "pvh");
	xch = xc_interface_open(NULL, NULL, 0);
	store = xs_open(XS_UNWATCH_FILTER);
	if (!xch || !store)
		die("opening");
	while (fgets(line, sizeof line, stdin)) {
		int64_t began = now_ns();
		if (!strcmp(line, "suspend\n"))
			suspend();
		else
			resume();
		printf("%lld\n", (long long)(now_ns() - began));
		fflush(stdout);
	}
	return 0;
}
