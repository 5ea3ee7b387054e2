/* The smallest PV guest that can start over: it registers no vCPU info area with Xen, as Linux does.
 *
 * It counts in data/counter, and suspends when control/shutdown or the event channel in
 * device/suspend/event-channel says so. After that it tells in data/over, and on the console through
 * its present channel, what its suspend hypercall has returned. It answers what it hears there.
 */
#define __XEN_INTERFACE_VERSION__ __XEN_LATEST_INTERFACE_VERSION__
#include <stddef.h>
#include <stdint.h>
#include <xen/xen.h>
#include <xen/event_channel.h>
#include <xen/sched.h>
#include <xen/io/console.h>
#include <xen/io/xs_wire.h>

enum { PAGE = 4096, STEP_NS = 100000000 };
#define ALIGNED __attribute__((aligned(PAGE)))
#define M2P ((const uint64_t *)0xffff800000000000)
#define barrier() __asm__ volatile("mfence" ::: "memory")

extern char hypercall_page[];

static union { shared_info_t info; char page[PAGE]; } shared ALIGNED;
static uint64_t frame_list[PAGE / 8] ALIGNED, frame_list_list[PAGE / 8] ALIGNED;
static start_info_t *start;
static uint64_t *p2m;
static uint32_t request;
static evtchn_port_t suspend_port;
static uint64_t store_events, console_events; /* since the last suspension */

static long hypercall(unsigned op, uint64_t a, uint64_t b, uint64_t c)
{
	long result;
	__asm__ volatile("call *%[entry]"
			 : "=a"(result), "+D"(a), "+S"(b), "+d"(c)
			 : [entry] "r"(hypercall_page + op * 32)
			 : "rcx", "r8", "r9", "r10", "r11", "memory");
	return result;
}

static void *page_of(uint64_t mfn) { return (void *)(M2P[mfn] * PAGE); }
static uint64_t mfn_of(const void *address) { return p2m[(uint64_t)address / PAGE]; }

static size_t length(const char *text)
{
	size_t size = 0;
	while (text[size])
		size++;
	return size;
}

static void *memcopy(void *to, const void *from, size_t size)
{
	for (size_t i = 0; i < size; i++)
		((char *)to)[i] = ((const char *)from)[i];
	return to;
}
void *memcpy(void *to, const void *from, size_t size) { return memcopy(to, from, size); }

/* ---- time and events ---- */

static uint64_t now_ns(void)
{
	volatile vcpu_time_info_t *time = &shared.info.vcpu_info[0].time;
	uint32_t version, low, high;
	uint64_t ns;
	do {
		version = time->version;
		barrier();
		__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
		uint64_t delta = ((uint64_t)high << 32 | low) - time->tsc_timestamp;
		delta = time->tsc_shift < 0 ? delta >> -time->tsc_shift : delta << time->tsc_shift;
		ns = time->system_time +
		     (uint64_t)(((unsigned __int128)delta * time->tsc_to_system_mul) >> 32);
		barrier();
	} while (version & 1 || version != time->version);
	return ns;
}

static int take(evtchn_port_t port)
{
	uint64_t bit = 1ull << port % 64;
	return !!(__atomic_fetch_and(&shared.info.evtchn_pending[port / 64], ~bit, __ATOMIC_SEQ_CST)
		  & bit);
}

static void notify(evtchn_port_t port)
{
	evtchn_send_t send = { port };
	hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_send, (uint64_t)&send, 0);
}

/* Waits until one of the channels fires, or some time has passed. */
static void wait(void)
{
	evtchn_port_t ports[] = { start->store_evtchn, start->console.domU.evtchn, suspend_port };
	struct sched_poll poll = { .nr_ports = suspend_port ? 3 : 2, .timeout = now_ns() + STEP_NS };
	set_xen_guest_handle(poll.ports, ports);
	hypercall(__HYPERVISOR_sched_op, SCHEDOP_poll, (uint64_t)&poll, 0);
	store_events += take(start->store_evtchn);
	console_events += take(start->console.domU.evtchn);
}

/* ---- text ---- */

struct text { char text[256]; size_t size; };

static struct text *add(struct text *to, const char *more)
{
	for (; *more && to->size < sizeof to->text - 1; more++)
		to->text[to->size++] = *more;
	to->text[to->size] = 0;
	return to;
}

static struct text *add_number(struct text *to, uint64_t number)
{
	char digits[21], *first = digits + 20;
	*first = 0;
	do
		*--first = '0' + number % 10;
	while (number /= 10);
	return add(to, first);
}

/* ---- the console ---- */

static void say(const char *text)
{
	struct xencons_interface *ring = page_of(start->console.domU.mfn);
	for (; *text; text++) {
		while (ring->out_prod - ring->out_cons >= sizeof ring->out)
			wait();
		ring->out[MASK_XENCONS_IDX(ring->out_prod, ring->out)] = *text;
		barrier();
		ring->out_prod++;
	}
	notify(start->console.domU.evtchn);
}

static void listen(void)
{
	static struct text heard;
	struct xencons_interface *ring = page_of(start->console.domU.mfn);
	while (ring->in_cons != ring->in_prod) {
		char one[2] = { ring->in[MASK_XENCONS_IDX(ring->in_cons, ring->in)], 0 };
		barrier();
		ring->in_cons++;
		notify(start->console.domU.evtchn);
		if (*one != '\n' && *one != '\r') {
			add(&heard, one);
		} else if (heard.size) {
			struct text line = { .size = 0 };
			say(add(add(add(&line, "tiny: heard "), heard.text), "\r\n")->text);
			heard.size = 0;
		}
	}
}

/* ---- xenstore ---- */

static void store_put(const void *data, size_t size)
{
	struct xenstore_domain_interface *ring = page_of(start->store_mfn);
	for (const char *byte = data; size--; byte++) {
		while (ring->req_prod - ring->req_cons >= XENSTORE_RING_SIZE)
			wait();
		ring->req[MASK_XENSTORE_IDX(ring->req_prod)] = *byte;
		barrier();
		ring->req_prod++;
	}
	notify(start->store_evtchn);
}

static void store_get(void *data, size_t size)
{
	struct xenstore_domain_interface *ring = page_of(start->store_mfn);
	for (char *byte = data; size--; byte++) {
		while (ring->rsp_cons == ring->rsp_prod)
			wait();
		*byte = ring->rsp[MASK_XENSTORE_IDX(ring->rsp_cons)];
		barrier();
		ring->rsp_cons++;
	}
	notify(start->store_evtchn);
}

/* One request; the answer's text, or NULL when it is an error. */
static const char *store(uint32_t type, const char *path, const char *value)
{
	static char answer[PAGE + 1];
	size_t name = length(path) + 1, size = value ? length(value) : 0;
	struct xsd_sockmsg message = { type, ++request, 0, name + size };
	store_put(&message, sizeof message);
	store_put(path, name);
	if (size)
		store_put(value, size);
	store_get(&message, sizeof message);
	store_get(answer, message.len);
	answer[message.len] = 0;
	return message.type == XS_ERROR ? NULL : answer;
}

static int same(const char *one, const char *other)
{
	while (*one && *one == *other)
		one++, other++;
	return *one == *other;
}

/* ---- the life of the guest ---- */

/* The toolstack finds the frames of the guest through this; it converts two of them back. */
static void show_frames(void)
{
	uint64_t list = start->mfn_list / PAGE, pages = (start->nr_pages + 511) / 512;
	for (uint64_t i = 0; i < pages; i++)
		frame_list[i] = p2m[list + i];
	frame_list_list[0] = mfn_of(frame_list);
	shared.info.arch.max_pfn = start->nr_pages;
	shared.info.arch.pfn_to_mfn_frame_list_list = mfn_of(frame_list_list);
}

/* A channel over which the toolstack can ask for the suspension, faster than through xenstore. */
static void offer_suspend_channel(void)
{
	evtchn_alloc_unbound_t alloc = { .dom = DOMID_SELF, .remote_dom = 0 };
	struct text text = { .size = 0 };
	hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_alloc_unbound, (uint64_t)&alloc, 0);
	suspend_port = alloc.port;
	store(XS_WRITE, "device/suspend/event-channel", add_number(&text, suspend_port)->text);
}

static void suspend(const char *asked_by)
{
	static uint64_t times;
	struct sched_shutdown reason = { SHUTDOWN_suspend };
	struct text text = { .size = 0 }, line = { .size = 0 };
	uint64_t store_mfn = start->store_mfn, console_mfn = start->console.domU.mfn;
	start->store_mfn = M2P[store_mfn];
	start->console.domU.mfn = M2P[console_mfn];
	long returned = hypercall(__HYPERVISOR_sched_op, SCHEDOP_shutdown, (uint64_t)&reason,
				  mfn_of(start));
	store_events = console_events = 0;
	if (returned) { /* cancelled: all is as it was */
		start->store_mfn = store_mfn;
		start->console.domU.mfn = console_mfn;
	} else {
		offer_suspend_channel();
	}
	add(add_number(add(add_number(add(&text, "suspensions="), ++times), " returned="), returned),
	    " asked_by=");
	add(&text, asked_by);
	store(XS_WRITE, "data/over", text.text);
	say(add(add(add(&line, "tiny: "), text.text), "\r\n")->text);
}

void run(start_info_t *info)
{
	start = info;
	p2m = (uint64_t *)start->mfn_list;
	hypercall(__HYPERVISOR_update_va_mapping, (uint64_t)&shared, start->shared_info | 7,
		  UVMF_INVLPG);
	show_frames();
	say("tiny: up\r\n");
	store(XS_WRITE, "control/feature-suspend", "1");
	offer_suspend_channel();
	take(suspend_port);
	for (uint64_t count = 1;; count++) {
		struct text text = { .size = 0 };
		add(add_number(add(&text, "boot=tiny count="), count), " uptime_ms=");
		add_number(add(add_number(&text, now_ns() / 1000000), " store_events="), store_events);
		add_number(add(&text, " console_events="), console_events);
		store(XS_WRITE, "data/counter", text.text);
		listen();
		const char *asked = store(XS_READ, "control/shutdown", NULL);
		if (asked && same(asked, "suspend")) {
			store(XS_WRITE, "control/shutdown", "");
			suspend("xenstore");
		} else if (take(suspend_port)) {
			suspend("channel");
		}
		wait();
	}
}
