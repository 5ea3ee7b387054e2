/* What the parts of a lab guest's program share. */
#ifndef WORK_H
#define WORK_H
#include <stddef.h>
#include <stdint.h>

enum { XS_DIRECTORY = 1, XS_READ = 2, XS_WATCH = 4, XS_TRANSACTION_START = 6,
       XS_TRANSACTION_END = 7, XS_WRITE = 11, XS_WATCH_EVENT = 15, XS_ERROR = 16 };

enum { WORKERS = 4, CPUS = 16, DISKS = 2, BLOCK = 4096, LARGEST = 16, CROWD = 2000 };

/* In memory that all processes share. */
struct totals {
	volatile int working;
	volatile uint64_t counts[CPUS];
	struct { volatile uint64_t ops, errors, verified; } io[DISKS];
	volatile uint64_t pings, answers, errors;
	struct { volatile uint64_t commits, errors, conflicts, lost; } xs[WORKERS];
	struct { volatile uint64_t times, tsc; } thaws[2];
};
extern struct totals *totals;

void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void die(const char *what) __attribute__((noreturn));
void nap(long milliseconds);
uint64_t uptime_ms(void);

struct store { int fd; uint32_t request; int fired; };

struct store store_open(void);
int store_ask(struct store *store, int type, uint32_t transaction, const char *payload,
	      size_t length, char reply[4097]);
int store_write(struct store *store, uint32_t transaction, const char *path, const char *value);
int store_read(struct store *store, uint32_t transaction, const char *path, char value[4097]);
void store_watch(struct store *store, const char *path);
void store_wait(struct store *store);

/* net.c */
#define BRIDGE "br0"
void net_setup(const char *card, int bridged, const char *address);
void net_join(const char *name);
void pinger(int unused);
/* backends.c */
void backends(int bridged);
#endif
