/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Which flows the shadow takes: watched ports, then a seeded hash that is the same for both directions and on every
 * host. agent/select/sampling.py computes the same hash; tests/bpf/test_tap.py compares the two.
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

/* 64 bits for a flow (or a client); the sum of two endpoint hashes does not depend on the direction. */
static __always_inline __u64 flow_hash(const struct packet *p, const struct control *c, int to_server)
{
	int by_client = c->sample_by == SAMPLE_BY_CLIENT;
	__u16 source_port = by_client ? 0 : p->source_port;
	__u16 destination_port = by_client ? 0 : p->destination_port;
	__u64 source, destination;

	if (p->key_bytes == KEY_V4_BYTES) {
		source = hash_ipv4(c->seed, p->key, source_port);
		destination = hash_ipv4(c->seed, p->key + 4, destination_port);
	} else {
		source = hash_ipv6(c->seed, p->key, source_port);
		destination = hash_ipv6(c->seed, p->key + 16, destination_port);
	}
	if (by_client)
		return mix(to_server ? source : destination);
	return mix(source + destination);
}

/* High half decides on sampling, so that a smaller percentage takes a subset; the low half picks the worker. */
static __always_inline int sampled(__u64 hash, const struct control *c)
{
	return ((hash >> 32) * PPM) >> 32 < c->sample_ppm;
}

static __always_inline __u32 worker_of(__u64 hash, const struct control *c)
{
	return ((hash & 0xffffffff) * c->workers) >> 32;
}

#endif
