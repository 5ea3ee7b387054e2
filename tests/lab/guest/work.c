/* The only program of a lab guest: does work that shows harm, and tells dom0 about it.
 *
 * It is process 1, without a shell, for each exec costs in emulation. It forks one process per job;
 * what they count is in shared memory, so that one process can publish all of it. The xenstore is
 * spoken to in its wire protocol, on /dev/xen/xenbus. If process 1 fails, the kernel panics, which
 * is how dom0 is to see it.
 */
#define _GNU_SOURCE
#include "work.h"
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>

struct header { uint32_t type, request, transaction, length; };

struct totals *totals;
static char boot[17];

void say(const char *format, ...)
{
	char line[512];
	va_list list;
	va_start(list, format);
	int size = vsnprintf(line, sizeof line - 1, format, list);
	va_end(list);
	if (size > (int)sizeof line - 2)
		size = sizeof line - 2;
	line[size] = '\n';
	if (write(1, line, size + 1) < 0)
		return; /* the console is all there is to complain on */
}

void die(const char *what)
{
	say("work: %s: %s", what, strerror(errno));
	_exit(1);
}

void nap(long milliseconds)
{
	struct timespec time = { milliseconds / 1000, milliseconds % 1000 * 1000000 };
	nanosleep(&time, NULL);
}

static uint64_t clock_ms(clockid_t clock)
{
	struct timespec now;
	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

uint64_t uptime_ms(void)
{
	return clock_ms(CLOCK_MONOTONIC);
}

/* ---- xenstore ---- */

struct store store_open(void)
{
	struct store store = { open("/dev/xen/xenbus", O_RDWR | O_CLOEXEC), 0, 0 };
	if (store.fd < 0)
		die("/dev/xen/xenbus");
	return store;
}

static void store_receive(struct store *store, void *into, size_t size)
{
	while (size) {
		ssize_t got = read(store->fd, into, size);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			die("reading from xenstore");
		into = (char *)into + got;
		size -= got;
	}
}

/* Receives one message; -1 with errno set when it is an error. Watch events only set `fired`. */
static int store_message(struct store *store, struct header *header, char reply[4097])
{
	store_receive(store, header, sizeof *header);
	if (header->length > 4096)
		die("a message too long from xenstore");
	store_receive(store, reply, header->length);
	reply[header->length] = 0;
	if (header->type == XS_WATCH_EVENT)
		store->fired = 1;
	if (header->type != XS_ERROR)
		return 0;
	errno = !strcmp(reply, "EAGAIN") ? EAGAIN : !strcmp(reply, "ENOENT") ? ENOENT
	      : !strcmp(reply, "EQUOTA") ? EDQUOT : EIO;
	return -1;
}

int store_ask(struct store *store, int type, uint32_t transaction, const char *payload,
	      size_t length, char reply[4097])
{
	char out[sizeof(struct header) + 4096];
	struct header header = { type, ++store->request, transaction, length };
	if (length > 4096)
		die("a message too long for xenstore");
	memcpy(out, &header, sizeof header);
	memcpy(out + sizeof header, payload, length);
	ssize_t put = write(store->fd, out, sizeof header + length);
	if (put != (ssize_t)(sizeof header + length))
		die("writing to xenstore");
	for (;;) {
		struct header got;
		int status = store_message(store, &got, reply);
		if (got.type != XS_WATCH_EVENT)
			return status;
	}
}

int store_write(struct store *store, uint32_t transaction, const char *path, const char *value)
{
	char payload[4096], reply[4097];
	size_t name = strlen(path) + 1, size = strlen(value);
	if (name + size > sizeof payload)
		die("a value too long for xenstore");
	memcpy(payload, path, name);
	memcpy(payload + name, value, size);
	return store_ask(store, XS_WRITE, transaction, payload, name + size, reply);
}

int store_read(struct store *store, uint32_t transaction, const char *path, char value[4097])
{
	return store_ask(store, XS_READ, transaction, path, strlen(path) + 1, value);
}

void store_watch(struct store *store, const char *path)
{
	char payload[256], reply[4097];
	size_t length = snprintf(payload, sizeof payload, "%s%ctoken", path, 0) + 1;
	if (store_ask(store, XS_WATCH, 0, payload, length, reply))
		die(path);
}

/* Waits until a watch has fired since the last time. */
void store_wait(struct store *store)
{
	struct header header;
	char text[4097];
	while (!store->fired)
		store_message(store, &header, text);
	store->fired = 0;
}

/* ---- the kernel's command line ---- */

/* The value of one option of the kernel's command line; empty when absent. */
static void option(const char *name, char value[512])
{
	static char line[4096];
	if (!*line) {
		int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
		if (fd < 0 || read(fd, line, sizeof line - 1) < 0)
			die("/proc/cmdline");
		close(fd);
	}
	const char *found = strstr(line, name);
	found = found ? found + strlen(name) : "";
	snprintf(value, 512, "%.*s", (int)strcspn(found, " \n"), found);
}

/* Whether a comma list has that word. */
static int lists(const char *list, const char *word)
{
	char all[520], wanted[80];
	snprintf(all, sizeof all, ",%s,", list);
	snprintf(wanted, sizeof wanted, ",%s,", word);
	return !!strstr(all, wanted);
}

/* ---- the jobs ---- */

static int cpus(void)
{
	long online = sysconf(_SC_NPROCESSORS_ONLN);
	return online < 1 ? 1 : online > CPUS ? CPUS : online;
}

/* One per virtual CPU, which must all go on for `count` to rise. */
static void counter(int cpu)
{
	cpu_set_t only;
	CPU_ZERO(&only);
	CPU_SET(cpu, &only);
	if (sched_setaffinity(0, sizeof only, &only))
		die("sched_setaffinity");
	for (;;) {
		nap(50);
		if (++totals->counts[cpu] % 100 == 0)
			say("work: boot=%s cpu=%d count=%llu uptime_ms=%llu", boot, cpu,
			    (unsigned long long)totals->counts[cpu],
			    (unsigned long long)uptime_ms());
	}
}

static unsigned long long slowest_count(void)
{
	uint64_t least = totals->counts[0];
	for (int cpu = 1; cpu < cpus(); cpu++)
		if (totals->counts[cpu] < least)
			least = totals->counts[cpu];
	return least;
}

/* What a guest does besides counting. */
enum { IO = 1, XS = 2, PING = 4 };

/* What was done on a disk, as data/io, data/io-b, ...; nothing when it is not there. */
static void publish_io(struct store *store, int disk)
{
	char path[32] = "data/io", value[256];
	if (!totals->io[disk].ops && disk)
		return;
	if (disk)
		snprintf(path, sizeof path, "data/io-%c", 'a' + disk);
	snprintf(value, sizeof value, "boot=%s ops=%llu errors=%llu verified=%llu", boot,
		 (unsigned long long)totals->io[disk].ops,
		 (unsigned long long)totals->io[disk].errors,
		 (unsigned long long)totals->io[disk].verified);
	if (store_write(store, 0, path, value))
		say("work: publishing %s: %s", path, strerror(errno));
}

static void publish(struct store *store, int jobs)
{
	char value[256];
	snprintf(value, sizeof value, "boot=%s count=%llu uptime_ms=%llu time_ms=%llu", boot,
		 slowest_count(), (unsigned long long)uptime_ms(),
		 (unsigned long long)clock_ms(CLOCK_REALTIME));
	if (store_write(store, 0, "data/counter", value))
		say("work: publishing data/counter: %s", strerror(errno));
	if (jobs & IO && totals->working) {
		for (int disk = 0; disk < DISKS; disk++)
			publish_io(store, disk);
	}
	if (jobs & XS && totals->working) {
		unsigned long long commits = 0, errors = 0, conflicts = 0, lost = 0;
		for (int i = 0; i < WORKERS; i++) {
			commits += totals->xs[i].commits;
			errors += totals->xs[i].errors;
			conflicts += totals->xs[i].conflicts;
			lost += totals->xs[i].lost;
		}
		snprintf(value, sizeof value,
			 "boot=%s commits=%llu errors=%llu conflicts=%llu lost=%llu", boot, commits,
			 errors, conflicts, lost);
		if (store_write(store, 0, "data/xs-total", value))
			say("work: publishing data/xs-total: %s", strerror(errno));
	}
	if (jobs & PING && totals->working) {
		snprintf(value, sizeof value, "boot=%s sent=%llu answered=%llu errors=%llu", boot,
			 (unsigned long long)totals->pings, (unsigned long long)totals->answers,
			 (unsigned long long)totals->errors);
		if (store_write(store, 0, "data/ping", value))
			say("work: publishing data/ping: %s", strerror(errno));
	}
}

/* When the processes around a crowd were thawed last, by the processor's clock. */
static void publish_thaws(struct store *store)
{
	char value[256];
	if (!totals->thaws[0].times)
		return;
	snprintf(value, sizeof value, "boot=%s times=%llu first=%llu last=%llu", boot,
		 (unsigned long long)totals->thaws[1].times,
		 (unsigned long long)totals->thaws[0].tsc,
		 (unsigned long long)totals->thaws[1].tsc);
	if (store_write(store, 0, "data/thaws", value))
		say("work: publishing data/thaws: %s", strerror(errno));
}

static void publisher(int jobs)
{
	struct store store = store_open();
	for (;;) {
		publish(&store, jobs);
		publish_thaws(&store);
		nap(250);
	}
}

/* Each block starts with this; the rest of it is generated from `sequence` and `number`. */
struct block { uint64_t magic, number, sequence, checksum; uint64_t fill[BLOCK / 8 - 4]; };

static void block_fill(struct block *block, uint64_t number, uint64_t sequence)
{
	uint64_t state = sequence * 0x9e3779b97f4a7c15u + number + 1, sum = 0;
	for (size_t i = 0; i < sizeof block->fill / 8; i++) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		block->fill[i] = state;
		sum += state ^ i;
	}
	block->magic = 0x6d706e65782d6f69u;
	block->number = number;
	block->sequence = sequence;
	block->checksum = sum;
}

static int job_disk; /* the one that this process works on */

static void io_error(const char *what, uint64_t block, const char *detail)
{
	totals->io[job_disk].errors++;
	say("work: io error: xvd%c: %s of block %llu: %s", 'a' + job_disk, what,
	    (unsigned long long)block, detail);
}

static void io_check(const struct block *blocks, uint64_t first, uint64_t count,
		     const uint64_t *expected)
{
	static struct block wanted;
	for (uint64_t i = 0; i < count; i++) {
		if (!expected[first + i])
			continue; /* nothing was written there yet */
		block_fill(&wanted, first + i, expected[first + i]);
		if (memcmp(&wanted, &blocks[i], BLOCK)) {
			char detail[128];
			snprintf(detail, sizeof detail, "found sequence %llu, expected %llu",
				 (unsigned long long)blocks[i].sequence,
				 (unsigned long long)expected[first + i]);
			io_error("content", first + i, detail);
		} else {
			totals->io[job_disk].verified++;
		}
	}
}

/* The disk appears some time after its driver was loaded. */
static int open_disk(int mode)
{
	char path[16];
	snprintf(path, sizeof path, "/dev/xvd%c", 'a' + job_disk);
	for (int i = 0; i < 3000; i++) {
		int disk = open(path, mode | O_DIRECT | O_CLOEXEC);
		if (disk >= 0)
			return disk;
		nap(20);
	}
	die(path);
	return -1;
}

static void io(int number)
{
	uint64_t size, sequence = 0, random = uptime_ms() * 2 + 1;
	char pace[512];
	option(" pace=", pace);
	int rest = atoi(pace);
	job_disk = number;
	int disk = open_disk(O_RDWR);
	if (ioctl(disk, BLKGETSIZE64, &size))
		die("the size of a disk");
	uint64_t blocks = size / BLOCK;
	uint64_t *expected = calloc(blocks, sizeof *expected);
	struct block *buffer = aligned_alloc(BLOCK, LARGEST * BLOCK);
	if (!expected || !buffer || blocks < LARGEST)
		die("no memory or no disk");
	for (;;) {
		for (int writing = 1; writing >= 0; writing--) {
			random ^= random << 13;
			random ^= random >> 7;
			random ^= random << 17;
			uint64_t count = 1 + random % LARGEST;
			uint64_t first = (random >> 16) % (blocks - count);
			ssize_t bytes = count * BLOCK;
			if (writing) {
				sequence++;
				for (uint64_t i = 0; i < count; i++)
					block_fill(&buffer[i], first + i, sequence);
				if (pwrite(disk, buffer, bytes, first * BLOCK) != bytes) {
					io_error("write", first, strerror(errno));
					/* What the blocks hold now is unknown. */
					memset(&expected[first], 0, count * sizeof *expected);
					continue;
				}
				for (uint64_t i = 0; i < count; i++)
					expected[first + i] = sequence;
				memset(buffer, 0, bytes);
			}
			/* Once what was just written, once something else. */
			if (pread(disk, buffer, bytes, first * BLOCK) != bytes)
				io_error("read", first, strerror(errno));
			else
				io_check(buffer, first, count, expected);
			totals->io[job_disk].ops++;
			if (rest)
				nap(rest);
		}
	}
}

static void xs_worker(int index)
{
	struct store store = store_open();
	uint64_t value = 0;
	char path[32], text[32], reply[4097];
	snprintf(path, sizeof path, "data/xs/%d", index);
	snprintf(text, sizeof text, "%d", 0);
	if (store_write(&store, 0, path, text))
		die("the first write below data/xs");
	for (;;) {
		if (store_ask(&store, XS_TRANSACTION_START, 0, "", 1, reply)) {
			totals->xs[index].errors++;
			say("work: xs error: start: %s", strerror(errno));
			nap(100);
			continue;
		}
		uint32_t transaction = strtoul(reply, NULL, 10);
		const char *step = "read";
		int failed = store_read(&store, transaction, path, reply);
		if (!failed && strtoull(reply, NULL, 10) != value) {
			totals->xs[index].errors++;
			say("work: xs error: %s is %s, expected %llu", path, reply,
			    (unsigned long long)value);
			value = strtoull(reply, NULL, 10);
		}
		if (!failed) {
			step = "write";
			snprintf(text, sizeof text, "%llu", (unsigned long long)value + 1);
			failed = store_write(&store, transaction, path, text);
		}
		if (!failed) {
			step = "commit";
			failed = store_ask(&store, XS_TRANSACTION_END, transaction, "T", 2, reply);
		}
		if (!failed) {
			value++;
			totals->xs[index].commits++;
			continue;
		}
		int reason = errno;
		/* A transaction that failed before its end is still open, and they are few. */
		if (strcmp(step, "commit"))
			store_ask(&store, XS_TRANSACTION_END, transaction, "F", 2, reply);
		errno = reason;
		if (errno == EAGAIN) {
			totals->xs[index].conflicts++;
		} else if (errno == ENOENT) {
			/* The store forgot the transaction: allowed when the guest reconnects. */
			totals->xs[index].lost++;
		} else {
			totals->xs[index].errors++;
			say("work: xs error: %s: %s", step, strerror(errno));
			nap(100);
		}
	}
}

static pid_t start(void (*job)(int), int argument)
{
	pid_t pid = fork();
	if (pid < 0)
		die("fork");
	if (!pid) {
		job(argument);
		_exit(1);
	}
	return pid;
}

/* ---- commands from dom0 ---- */

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ssize_t put = write(fd, text, strlen(text));
	int problem = errno;
	close(fd);
	errno = problem;
	return put == (ssize_t)strlen(text) ? 0 : -1;
}

static void blocked_reader(int unused)
{
	(void)unused;
	void *buffer = aligned_alloc(BLOCK, BLOCK);
	int disk = open_disk(O_RDONLY);
	if (!buffer)
		die("memory");
	ssize_t got = pread(disk, buffer, BLOCK, 0);
	say("work: the stalled read ended: %zd", got);
	_exit(got == BLOCK ? 0 : 1);
}

/* Leaves writes pending while it sleeps so that it can be frozen; later reads back what they wrote. */
static void pending_writer(int told)
{
	enum { WRITES = 16, BLOCKS = WRITES * LARGEST };
	struct block *buffer = aligned_alloc(BLOCK, BLOCKS * BLOCK), wanted;
	struct iocb writes[WRITES], *list[WRITES];
	struct io_event events[WRITES];
	struct store store = store_open();
	aio_context_t context = 0;
	int disk = open_disk(O_RDWR), errors = 0;
	char text[64];
	if (!buffer || syscall(SYS_io_setup, WRITES, &context))
		die("io_setup");
	memset(writes, 0, sizeof writes);
	for (int i = 0; i < BLOCKS; i++)
		block_fill(&buffer[i], i, uptime_ms());
	for (int i = 0; i < WRITES; i++) {
		writes[i].aio_fildes = disk;
		writes[i].aio_lio_opcode = IOCB_CMD_PWRITE;
		writes[i].aio_buf = (uintptr_t)&buffer[i * LARGEST];
		writes[i].aio_nbytes = LARGEST * BLOCK;
		writes[i].aio_offset = i * LARGEST * BLOCK;
		list[i] = &writes[i];
	}
	if (syscall(SYS_io_submit, context, WRITES, list) != WRITES || write(told, "", 1) != 1)
		die("io_submit");
	int done = 0;
	while (done < WRITES) {
		int got = syscall(SYS_io_getevents, context, 1, WRITES - done, &events[done], NULL);
		if (got < 0 && errno != EINTR)
			die("io_getevents");
		done += got > 0 ? got : 0;
	}
	for (int i = 0; i < WRITES; i++)
		errors += events[i].res != LARGEST * BLOCK;
	for (int i = 0; i < BLOCKS; i++) {
		block_fill(&wanted, i, buffer[i].sequence);
		errors += pread(disk, &buffer[i], BLOCK, i * BLOCK) != BLOCK ||
			  memcmp(&buffer[i], &wanted, BLOCK);
	}
	snprintf(text, sizeof text, "boot=%s done=%d errors=%d", boot, done, errors);
	if (store_write(&store, 0, "data/pending", text))
		die("data/pending");
	_exit(errors != 0);
}

static int leave_pending(void)
{
	int told[2];
	char byte;
	if (pipe(told))
		return -1;
	start(pending_writer, told[1]);
	close(told[1]);
	int failed = read(told[0], &byte, 1) != 1;
	close(told[0]);
	return failed ? -1 : 0;
}

/* Waits for nothing; but being frozen interrupts it, and it ends as soon as it is thawed. */
static void thawed(int number)
{
	struct epoll_event none;
	int nothing = epoll_create1(EPOLL_CLOEXEC);
	if (nothing < 0)
		die("epoll_create1");
	for (;;) {
		epoll_wait(nothing, &none, 1, -1);
		totals->thaws[number].tsc = __builtin_ia32_rdtsc();
		totals->thaws[number].times++;
	}
}

static void idle(int unused)
{
	(void)unused;
	for (;;)
		pause();
}

/* So many idle processes instead of those of the last time, between two that tell of their thaws. */
static int crowd(const char *text)
{
	static pid_t all[CROWD + 2];
	static int size;
	int wanted = atoi(text);
	if (wanted < 0 || wanted > CROWD)
		return -1;
	for (; size; size--)
		if (kill(all[size - 1], SIGKILL) || waitpid(all[size - 1], NULL, 0) < 0)
			return -1;
	all[size++] = start(thawed, 0);
	for (int i = 0; i < wanted; i++)
		all[size++] = start(idle, 0);
	all[size++] = start(thawed, 1);
	return 0;
}

static char state_of(pid_t pid)
{
	char path[64], text[512], *end;
	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return '?';
	ssize_t got = read(fd, text, sizeof text - 1);
	close(fd);
	if (got <= 0)
		return '?';
	text[got] = 0;
	end = strrchr(text, ')');
	return end && end[1] ? end[2] : '?';
}

/* Ends when the reader hangs in the kernel for good, not only for the time of a healthy read. */
static int stall(void)
{
	pid_t reader = start(blocked_reader, 0);
	int in_a_row = 0;
	for (int i = 0; i < 100 && in_a_row < 10; i++) {
		nap(50);
		in_a_row = state_of(reader) == 'D' ? in_a_row + 1 : 0;
	}
	return in_a_row == 10 ? 0 : -1;
}

static void start_work(int jobs)
{
	if (totals->working)
		return;
	totals->working = 1;
	if (jobs & IO)
		for (int disk = 0; disk < DISKS; disk++)
			if (!disk || !access("/sys/block/xvdb", F_OK))
				start(io, disk);
	for (int i = 0; jobs & XS && i < WORKERS; i++)
		start(xs_worker, i);
	if (jobs & PING)
		start(pinger, 0);
}

/* Says each line of a file on the console: what the kernel tells in /proc, for example. */
static int show(const char *path)
{
	char line[512];
	FILE *file = fopen(path, "re");
	if (!file)
		return -1;
	while (fgets(line, sizeof line, file)) {
		line[strcspn(line, "\n")] = 0;
		say("work: %s: %s", path, line);
	}
	fclose(file);
	return 0;
}

static void network(void)
{
	char address[512], work[512];
	option(" address=", address);
	option(" work=", work);
	if (*address)
		net_setup("eth0", lists(work, "bridge"), address);
}

static void command(struct store *store, const char *text, int jobs)
{
	char done[256];
	int failed = 0;
	int ends = !strcmp(text, "crash") || !strcmp(text, "poweroff") || !strcmp(text, "reboot");
	errno = 0;
	if (!strncmp(text, "freeze-timeout ", 15))
		failed = write_file("/sys/power/pm_freeze_timeout", text + 15);
	else if (!strcmp(text, "panic-when-hung"))
		failed = write_file("/proc/sys/kernel/hung_task_panic", "1") ||
			 write_file("/proc/sys/kernel/hung_task_timeout_secs", "4");
	else if (!strncmp(text, "show ", 5))
		failed = show(text + 5);
	else if (!strncmp(text, "crowd ", 6))
		failed = crowd(text + 6);
	else if (!strcmp(text, "stall"))
		failed = stall();
	else if (!strcmp(text, "pending"))
		failed = leave_pending();
	else if (!strcmp(text, "start"))
		start_work(jobs);
	else if (!strcmp(text, "net")) /* the card has been plugged in anew */
		network();
	else if (!ends) {
		errno = ENOSYS;
		failed = -1;
	}
	snprintf(done, sizeof done, "%.100s: %s", text,
		 !failed ? "ok" : errno ? strerror(errno) : "failed");
	say("work: command %s", done);
	if (store_write(store, 0, "data/command-done", done))
		say("work: acknowledging: %s", strerror(errno));
	if (!strcmp(text, "crash")) {
		if (write_file("/proc/sys/kernel/sysrq", "1") || write_file("/proc/sysrq-trigger", "c"))
			die("sysrq");
	} else if (!strcmp(text, "poweroff")) {
		reboot(RB_POWER_OFF);
	} else if (!strcmp(text, "reboot")) {
		reboot(RB_AUTOBOOT);
	}
}

/* Answers each line that is written to its console. */
static void listener(int unused)
{
	char line[256];
	(void)unused;
	while (fgets(line, sizeof line, stdin)) {
		line[strcspn(line, "\r\n")] = 0;
		say("work: heard %s", line);
	}
	die("the console");
}

static void serve(int jobs)
{
	struct store store = store_open();
	char text[4097];
	if (store_write(&store, 0, "data/command", ""))
		die("data/command");
	store_watch(&store, "data/command");
	for (;;) {
		store_wait(&store);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		if (store_read(&store, 0, "data/command", text) || !*text)
			continue;
		char order[256];
		snprintf(order, sizeof order, "%.200s", text);
		if (store_write(&store, 0, "data/command", ""))
			say("work: taking a command: %s", strerror(errno));
		command(&store, order, jobs);
	}
}

/* The kernel runs these two when the toolstack asks for a shutdown. */
static void as_other_program(const char *name)
{
	if (!strcmp(name, "poweroff"))
		reboot(RB_POWER_OFF);
	if (!strcmp(name, "reboot"))
		reboot(RB_AUTOBOOT);
}

/* Loads those modules of the initramfs that the command line names, in the order of their needs. */
static void load_modules(void)
{
	char wanted[512], name[64], path[96];
	option(" modules=", wanted);
	FILE *order = fopen("/modules/order", "re");
	if (!order)
		die("/modules/order");
	while (fscanf(order, "%63s", name) == 1) {
		if (!lists(wanted, name))
			continue;
		snprintf(path, sizeof path, "/modules/%s", name);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
			die(path);
		close(fd);
	}
	fclose(order);
}

int main(int argc, char **argv)
{
	char work[512], hold[512];
	unsigned char random[8];
	(void)argc;
	as_other_program(basename(argv[0]));

	if (mount("dev", "/dev", "devtmpfs", 0, NULL) || mount("proc", "/proc", "proc", 0, NULL) ||
	    mount("sys", "/sys", "sysfs", 0, NULL))
		die("mounting");
	if (write_file("/proc/sys/kernel/hung_task_timeout_secs", "20") ||
	    write_file("/proc/sys/kernel/printk", "7"))
		die("/proc/sys/kernel");
	load_modules();

	int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, random, sizeof random) != sizeof random)
		die("/dev/urandom");
	close(fd);
	for (int i = 0; i < 8; i++)
		sprintf(boot + 2 * i, "%02x", random[i]);

	option(" work=", work);
	int jobs = (lists(work, "io") ? IO : 0) | (lists(work, "xs") ? XS : 0) |
		   (lists(work, "ping") ? PING : 0);

	totals = mmap(NULL, sizeof *totals, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (totals == MAP_FAILED)
		die("mmap");
	for (int cpu = 0; cpu < cpus(); cpu++)
		start(counter, cpu);
	network();
	if (lists(work, "backends"))
		start(backends, lists(work, "bridge"));
	/* Held back until the command "start" comes, so that other guests can boot in peace. */
	option(" hold=", hold);
	if (!*hold)
		start_work(jobs);
	start(publisher, jobs);
	start(listener, 0);
	say("work: boot=%s started, with %s", boot, *work ? work : "nothing else");
	serve(jobs);
}
