/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * How fast production answers, measured here whether or not anything is copied: the check that mirroring does no harm
 * compares production with mirroring on and off. From the last byte of what a client sent to the first byte of what the
 * server sends then, for the flows whose place among PPM is below control.harm_ppm.
 *
 * It knows turns, not messages: pipelined requests, and requests inside TLS, count as they take turns. That is as wrong
 * with mirroring on as with mirroring off.
 */
#ifndef SHADOWTAP_PRODUCTION_H
#define SHADOWTAP_PRODUCTION_H

#include "match.h"

#define STATUS_BYTES 10 /* "HTTP/1.1 5" */

/* Which bucket a time belongs to: 16 of 256 ns each, then 16 for each power of two. */
static __always_inline __u32 bucket_of(__u64 ns)
{
	__u64 v = ns >> LATENCY_UNIT_BITS;
	__u32 rest, power = 0;

	if (v < LATENCY_STEPS)
		return v;
	if (v >> 32)
		v = 0xffffffff;
	rest = v;
#pragma unroll
	for (int bits = 16; bits; bits >>= 1) {
		if (rest >> bits) {
			rest >>= bits;
			power += bits;
		}
	}
	return (power - 3) * LATENCY_STEPS | (v >> (power - 4) & (LATENCY_STEPS - 1));
}

/* An answer of a server that failed. */
static __always_inline int is_error(struct __sk_buff *skb, __u32 payload_at, __u32 length)
{
	__u8 line[STATUS_BYTES];

	if (length < STATUS_BYTES || bpf_skb_load_bytes(skb, payload_at, line, STATUS_BYTES) < 0)
		return 0;
	return line[0] == 'H' && line[1] == 'T' && line[2] == 'T' && line[3] == 'P' && line[4] == '/' && line[8] == ' ' &&
	       line[9] == '5';
}

static __always_inline void count_answer(struct __sk_buff *skb, __u32 word, __u64 ns, __u32 payload_at, __u32 length)
{
	u32 phase = word & PHASE_MASK;
	struct production_counts *counts = production_latency.lookup(&phase); /* there is none of PHASE_PAUSED */
	__u32 bucket = bucket_of(ns) & (LATENCY_BUCKETS - 1);

	if (!counts)
		return;
	asm volatile("" : "+r"(bucket));
	bucket &= LATENCY_BUCKETS - 1;
	__sync_fetch_and_add(&counts->buckets[bucket], 1);
	if (is_error(skb, payload_at, length))
		__sync_fetch_and_add(&counts->errors, 1);
}

/* The client sent something new: it is asking, and not done asking before now. */
static __always_inline void note_question(u64 *flow, struct production_flow *f, const struct stretch *s, __u32 word,
					  __u64 now_ns)
{
	struct production_flow fresh = {.asked_ns = now_ns, .word = word, .asked = s->seq + s->length};

	if (!f) {
		production_flows.update(flow, &fresh);
		return;
	}
	if ((__s32)(fresh.asked - f->asked) <= 0) /* sent again */
		return;
	f->asked_ns = now_ns;
	f->word = word;
	f->asked = fresh.asked;
}

/* A segment of a measured flow, which the hash of its connection stands for: half the cost of its ends, and the flows
 * that are known at a time are too few for two to share one. */
static __always_inline void note_production(struct __sk_buff *skb, const struct packet *p, u64 flow, __u32 word,
					    int to_server, __u64 now_ns)
{
	struct production_flow *f;
	struct stretch s;
	__u32 payload_at = read_tcp(skb, p, &s), end;
	__u64 asked_ns;

	if (!payload_at || (!s.length && !(to_server && s.flags & TCP_SYN)))
		return;
	if (s.flags & TCP_SYN) { /* the same ports again */
		production_flows.delete(&flow);
		return;
	}
	f = production_flows.lookup(&flow);
	if (to_server) {
		note_question(&flow, f, &s, word, now_ns);
		return;
	}
	if (!f)
		return;
	end = s.seq + s.length;
	if (f->told_some && (__s32)(end - f->told) <= 0) /* sent again */
		return;
	f->told = end;
	f->told_some = 1;
	asked_ns = f->asked_ns;
	f->asked_ns = 0;
	if (asked_ns && f->word == word)
		count_answer(skb, word, now_ns - asked_ns, payload_at, s.length);
}

#endif
