/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * When the agent's own requests really leave. The replay client reads its clock before send(), and whatever keeps its
 * process from the processor behind that would count as the shadow's latency; this program notes the time at which the
 * kernel handed the request's first and last new segment to the card. Workers map the slots (agent/capture/sent.py).
 *
 * A slot belongs to the connection that began last of those whose hashes lead to it: its SYN takes the slot, and from it
 * the program knows what is new. A connection that lost its slot, or whose SYN was not seen, has no times from here on
 * and user space its own clock; it never has a wrong one.
 */
#ifndef SHADOWTAP_SENT_H
#define SHADOWTAP_SENT_H

#include "match.h"

static __always_inline int same_key(const struct sent_slot *slot, const struct packet *p)
{
	__u32 differs = 0;

	/* Words, and no early end: half the time of a loop over bytes. */
#pragma unroll
	for (int i = 0; i < KEY_V6_BYTES / 4; i++)
		differs |= ((const __u32 *)slot->key)[i] ^ ((const __u32 *)p->key)[i];
	return !differs;
}

/* Writing begins and ends with `version`: readers take nothing whose version is odd. */
static __always_inline void begin_writing(struct sent_slot *slot)
{
	slot->version++;
	asm volatile("" ::: "memory");
}

static __always_inline void end_writing(struct sent_slot *slot)
{
	asm volatile("" ::: "memory");
	slot->version++;
}

static __always_inline void take_slot(struct sent_slot *slot, const struct packet *p, const struct stretch *s)
{
	begin_writing(slot);
	slot->first_ns = slot->last_ns = 0;
	slot->seq = s->seq + 1;
	slot->ack = 0;
	__builtin_memcpy(slot->key, p->key, KEY_V6_BYTES);
	end_writing(slot);
}

/* Payload went out. What was sent before changes nothing; what acknowledges more than the payload before it did is the
 * next request, for the upstream answered in between. */
static __always_inline void note_payload(struct sent_slot *slot, const struct stretch *s, __u64 now_ns)
{
	__u32 end = s->seq + s->length;

	if ((__s32)(end - slot->seq) <= 0)
		return;
	begin_writing(slot);
	if (!slot->first_ns || (__s32)(s->ack - slot->ack) > 0)
		slot->first_ns = now_ns;
	slot->last_ns = now_ns;
	slot->seq = end;
	slot->ack = s->ack;
	end_writing(slot);
}

static __always_inline void note_sent(struct __sk_buff *skb)
{
	struct packet p = {};
	struct stretch s;
	struct control *c;
	struct sent_slot *slot;
	u32 index = 0;
	__u64 now_ns;

	if (!skb->mark) /* nearly every packet: production's */
		return;
	c = control.lookup(&index);
	if (!c || skb->mark != c->own_mark)
		return;
	now_ns = bpf_ktime_get_ns();
	if (now_ns >= c->lease_until_ns)
		return;
	if (parse_packet(skb, &p) != PARSED_TCP || !read_tcp(skb, &p, &s))
		return;
	if (!s.length && !(s.flags & TCP_SYN))
		return;
	index = connection_hash(&p, 0) & (SENT_SLOTS - 1);
	slot = sent_slots.lookup(&index);
	if (!slot)
		return;
	if (s.flags & TCP_SYN) {
		if (!(s.flags & TCP_ACK))
			take_slot(slot, &p, &s);
	} else if (same_key(slot, &p)) {
		note_payload(slot, &s, now_ns);
	}
}

#endif
