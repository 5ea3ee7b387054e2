/* A driver domain's toolstack: what hotplug scripts do, for the network and disks that it serves. */
#define _GNU_SOURCE
#include "work.h"
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

/* Calls `visit` for each device of a kind that this domain serves. */
static void each(struct store *store, const char *kind,
		 void (*visit)(struct store *, const char *path, const char *domid, const char *devid))
{
	char path[512], domids[4097], devids[4097];
	snprintf(path, sizeof path, "backend/%s", kind);
	memset(domids, 0, sizeof domids);
	if (store_ask(store, XS_DIRECTORY, 0, path, strlen(path) + 1, domids))
		return; /* it serves none */
	for (char *domid = domids; *domid; domid += strlen(domid) + 1) {
		snprintf(path, sizeof path, "backend/%s/%.8s", kind, domid);
		memset(devids, 0, sizeof devids);
		if (store_ask(store, XS_DIRECTORY, 0, path, strlen(path) + 1, devids))
			continue; /* gone meanwhile */
		for (char *devid = devids; *devid; devid += strlen(devid) + 1) {
			snprintf(path, sizeof path, "backend/%s/%.8s/%.16s", kind, domid, devid);
			visit(store, path, domid, devid);
		}
	}
}

static int is_done(struct store *store, const char *path)
{
	char node[600], value[4097];
	snprintf(node, sizeof node, "%s/hotplug-status", path);
	return !store_read(store, 0, node, value) && !strcmp(value, "connected");
}

static void done(struct store *store, const char *path)
{
	char node[600];
	snprintf(node, sizeof node, "%s/hotplug-status", path);
	if (store_write(store, 0, node, "connected"))
		say("work: %s: %s", node, strerror(errno));
	else
		say("work: serving %s", path);
}

static void vif(struct store *store, const char *path, const char *domid, const char *devid)
{
	char name[IFNAMSIZ];
	snprintf(name, sizeof name, "vif%.5s.%.5s", domid, devid);
	if (is_done(store, path) || !if_nametoindex(name))
		return; /* the driver makes the interface first, and then changes the device's state */
	net_join(name);
	done(store, path);
}

static void vbd(struct store *store, const char *path, const char *domid, const char *devid)
{
	(void)domid, (void)devid;
	char node[600], value[4097], number[32];
	struct stat disk;
	snprintf(node, sizeof node, "%s/params", path);
	if (is_done(store, path) || store_read(store, 0, node, value))
		return;
	if (stat(value, &disk) || !S_ISBLK(disk.st_mode)) {
		say("work: no disk %s to serve", value);
		return;
	}
	snprintf(node, sizeof node, "%s/physical-device", path);
	snprintf(number, sizeof number, "%x:%x", major(disk.st_rdev), minor(disk.st_rdev));
	if (store_write(store, 0, node, number))
		say("work: %s: %s", node, strerror(errno));
	done(store, path);
}

void backends(int bridged)
{
	struct store store = store_open();
	store_watch(&store, "backend");
	for (;;) {
		store_wait(&store);
		if (bridged)
			each(&store, "vif", vif);
		each(&store, "vbd", vbd);
	}
}
