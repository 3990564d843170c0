/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Which flows the shadows take: watched ports, then a seeded hash that is the same for both directions and on every
 * host, then the client's address. agent/select/sampling.py computes the same hash; tests/bpf/test_tap.py compares the two.
 */
#ifndef SHADOWTAP_MATCH_H
#define SHADOWTAP_MATCH_H

#include "maps.h"
#include "parse.h"

static __always_inline int watched(__u16 port)
{
	u32 word = port >> 6;
	u64 *bits = ports.lookup(&word);

	return bits && (*bits >> (port & 63)) & 1;
}

/* Finalizer of splitmix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit. */
static __always_inline __u64 mix(__u64 x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ULL;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

static __always_inline __u64 hash_ipv4(__u64 seed, const __u8 *address, __u16 port)
{
	__be32 a;

	__builtin_memcpy(&a, address, 4);
	return mix(seed + ((__u64)bpf_ntohl(a) << 16 | port));
}

static __always_inline __u64 hash_ipv6(__u64 seed, const __u8 *address, __u16 port)
{
	__be32 a[4];

	__builtin_memcpy(a, address, 16);
	seed = mix(seed + ((__u64)bpf_ntohl(a[0]) << 32 | bpf_ntohl(a[1])));
	seed = mix(seed + ((__u64)bpf_ntohl(a[2]) << 32 | bpf_ntohl(a[3])));
	return mix(seed + port);
}

/* 64 bits for a connection; the sum of two endpoint hashes does not depend on the direction. */
static __always_inline __u64 connection_hash(const struct packet *p, __u64 seed)
{
	if (p->key_bytes == KEY_V4_BYTES)
		return mix(hash_ipv4(seed, p->key, p->source_port) + hash_ipv4(seed, p->key + 4, p->destination_port));
	return mix(hash_ipv6(seed, p->key, p->source_port) + hash_ipv6(seed, p->key + 16, p->destination_port));
}

/* 64 bits for a client's address. */
static __always_inline __u64 client_hash(const struct packet *p, __u64 seed, int to_server)
{
	if (p->key_bytes == KEY_V4_BYTES)
		return mix(hash_ipv4(seed, to_server ? p->key : p->key + 4, 0));
	return mix(hash_ipv6(seed, to_server ? p->key : p->key + 16, 0));
}

/* The high half says where among PPM a flow has its place, so that a smaller window takes a subset; the low half picks
 * the worker. */
static __always_inline __u32 place_of(__u64 hash)
{
	return ((hash >> 32) * PPM) >> 32;
}

static __always_inline __u32 worker_of(__u64 hash, const struct control *c)
{
	return ((hash & 0xffffffff) * c->workers) >> 32;
}

/* What the tables say of a flow. */
struct choice {
	const struct selection *tables;
	__u32 set;      /* which of the two they are */
	__u32 generation;
	__u32 shadows;  /* mask of those that may want it */
	__u32 address;  /* mask of the tests on the client's address that are true */
	__u32 by_head;  /* 1: its requests' heads decide */
};

/* Some shadow's percentage takes this flow. */
static __always_inline int sampled(const struct packet *p, const struct control *c, __u64 hash, int to_server,
				   struct choice *choice)
{
	const struct selection *s = choice->tables;
	__u32 place = place_of(hash), client_place = 0, mask = 0;

	if (s->by_client)
		client_place = place_of(client_hash(p, c->seed, to_server));
#pragma unroll
	for (int i = 0; i < SHADOWS_MAX; i++) {
		__u32 at;

		if (i >= s->shadows)
			break;
		at = s->by_client >> i & 1 ? client_place : place;
		if (at >= s->windows[i].from_ppm && at < s->windows[i].to_ppm)
			mask |= 1 << i;
	}
	choice->shadows = mask & c->enabled;
	return choice->shadows != 0;
}

/* The tests on the client's address that are true. */
static __always_inline __u32 address_tests(const struct packet *p, __u32 set, int to_server)
{
	__u32 *tests;

	if (p->key_bytes == KEY_V4_BYTES) {
		struct prefix4 prefix = {.bits = 32};

		__builtin_memcpy(prefix.address, to_server ? p->key : p->key + 4, 4);
		tests = set ? addresses4_1.lookup(&prefix) : addresses4_0.lookup(&prefix);
	} else {
		struct prefix6 prefix = {.bits = 128};

		__builtin_memcpy(prefix.address, to_server ? p->key : p->key + 16, 16);
		tests = set ? addresses6_1.lookup(&prefix) : addresses6_0.lookup(&prefix);
	}
	return tests ? *tests & (ADDRESS_MASKS - 1) : 0;
}

/* Some shadow's criteria may want this flow, as far as its client's address tells. */
static __always_inline int matched(const struct packet *p, int to_server, struct choice *choice)
{
	const struct selection *s = choice->tables;

	if (s->addressed)
		choice->address = address_tests(p, choice->set, to_server);
	choice->by_head = s->headed && !(choice->shadows & s->certain[choice->address & (ADDRESS_MASKS - 1)]);
	return (choice->shadows & s->possible[choice->address & (ADDRESS_MASKS - 1)]) != 0;
}

#endif
