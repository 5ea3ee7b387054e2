/* The network of a lab guest: its card, a bridge for others, and pings that show that it lives. */
#define _GNU_SOURCE
#include "work.h"
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_bridge.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PING_MS = 100 };
static char gateway[16]; /* number 2 of the network: QEMU's own, or what dom0 has given itself */

static struct ifreq named(const char *name)
{
	struct ifreq request = { 0 };
	snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
	return request;
}

static int control(void)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket");
	return fd;
}

/* Waits until there is an interface of that name: drivers make theirs when they please. */
static void await(const char *name)
{
	struct sockaddr_nl links = { .nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK };
	char news[8192];
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (fd < 0 || bind(fd, (struct sockaddr *)&links, sizeof links))
		die("netlink");
	while (!if_nametoindex(name))
		if (recv(fd, news, sizeof news, 0) < 0 && errno != ENOBUFS)
			die("netlink");
	close(fd);
}

static void up(int fd, const char *name)
{
	struct ifreq request = named(name);
	if (ioctl(fd, SIOCGIFFLAGS, &request))
		die(name);
	request.ifr_flags |= IFF_UP;
	if (ioctl(fd, SIOCSIFFLAGS, &request))
		die(name);
}

static void set(int fd, const char *name, int what, const char *address)
{
	struct ifreq request = named(name);
	struct sockaddr_in *inet = (struct sockaddr_in *)&request.ifr_addr;
	inet->sin_family = AF_INET;
	if (!inet_aton(address, &inet->sin_addr) || ioctl(fd, what, &request))
		die(address);
}

/* Makes an interface a port of the bridge; the same again does nothing. */
void net_join(const char *name)
{
	int fd = control();
	struct ifreq request = named(BRIDGE);
	request.ifr_ifindex = if_nametoindex(name);
	if (ioctl(fd, SIOCBRADDIF, &request) && errno != EBUSY)
		die(name);
	up(fd, name);
	close(fd);
}

/* One that forwards at once, as Xen's own script sets it up, and not after 30 s of listening. */
static void make_bridge(int fd)
{
	unsigned long no_delay[4] = { BRCTL_SET_BRIDGE_FORWARD_DELAY };
	struct ifreq request = named(BRIDGE);
	request.ifr_data = (void *)no_delay;
	if (ioctl(fd, SIOCBRADDBR, BRIDGE) || ioctl(fd, SIOCDEVPRIVATE, &request))
		die(BRIDGE);
}

/* Gives an address to the card, or to the bridge that it becomes a port of. */
void net_setup(const char *card, int bridged, const char *address)
{
	int fd = control();
	const char *own = bridged ? BRIDGE : card;
	await(card);
	if (bridged) {
		make_bridge(fd);
		net_join(card);
	}
	set(fd, own, SIOCSIFADDR, address);
	set(fd, own, SIOCSIFNETMASK, "255.255.255.0");
	up(fd, own);
	close(fd);
	snprintf(gateway, sizeof gateway, "%.*s.2", (int)(strrchr(address, '.') - address), address);
	say("work: %s has %s", own, address);
}

static uint16_t checksum(const void *data, size_t size)
{
	const uint16_t *words = data;
	uint32_t sum = 0;
	for (size_t i = 0; i < size / 2; i++)
		sum += words[i];
	sum = (sum >> 16) + (sum & 0xffff);
	return ~(sum + (sum >> 16));
}

/* Pings the gateway without end; a lost ping is sent anew under the next number. */
void pinger(int unused)
{
	(void)unused;
	struct sockaddr_in to = { .sin_family = AF_INET };
	struct timeval patience = { 0, PING_MS * 1000 };
	int fd = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP);
	if (fd < 0 || !inet_aton(gateway, &to.sin_addr) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience))
		die("ping");
	uint16_t id = getpid();
	for (uint16_t sequence = 0;; sequence++) {
		struct icmphdr echo = { .type = ICMP_ECHO };
		char packet[512];
		echo.un.echo.id = id;
		echo.un.echo.sequence = sequence;
		echo.checksum = checksum(&echo, sizeof echo);
		totals->pings++;
		if (sendto(fd, &echo, sizeof echo, 0, (struct sockaddr *)&to, sizeof to) < 0) {
			totals->errors++;
			nap(PING_MS);
			continue;
		}
		for (;;) {
			ssize_t got = recv(fd, packet, sizeof packet, 0);
			if (got < 0)
				break; /* no answer in time */
			struct icmphdr *answer = (void *)(packet + 4 * ((struct iphdr *)packet)->ihl);
			if ((char *)(answer + 1) <= packet + got && answer->type == ICMP_ECHOREPLY &&
			    answer->un.echo.id == id && answer->un.echo.sequence == sequence) {
				totals->answers++;
				nap(PING_MS);
				break;
			}
		}
	}
}
