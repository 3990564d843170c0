/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Where request heads decide: follows each connection just far enough to know where a request begins, walks the
 * automaton over its head, and leaves requests that no shadow can want, and their answers, in the kernel.
 *
 * It may be generous, never mean: whatever it cannot tell (a head that goes on, chunked requests, pipelining, a hole, a
 * protocol it does not know) it copies. A connection whose requests cannot be told apart any more is *sticky*: copied
 * to its end. A connection that it meets in the middle is picked up at a segment that is a request's whole head, as
 * user space picks it up.
 *
 *     off ──wanted head──► on ──unwanted head, all answers begun──► off          anything unclear ──► sticky
 *
 * User space sees the parts that were left out as such: the first segment copied after them says `resumed`.
 */
#ifndef SHADOWTAP_FOLLOW_H
#define SHADOWTAP_FOLLOW_H

#include "match.h"

#define READING_MAX 32 /* segments of one head */
#define LENGTH_MAX (1U << 30) /* of a body, so that its end is not mistaken for the past */

static __always_inline struct flow_key flow_key_of(const struct packet *p, int to_server)
{
	struct flow_key key = {};

	if (p->key_bytes == KEY_V4_BYTES) {
		__builtin_memcpy(key.ends, to_server ? p->key : p->key + 4, 4);
		__builtin_memcpy(key.ends + 4, to_server ? p->key + 4 : p->key, 4);
		__builtin_memcpy(key.ends + 8, to_server ? p->key + 8 : p->key + 10, 2);
		__builtin_memcpy(key.ends + 10, to_server ? p->key + 10 : p->key + 8, 2);
		return key;
	}
	__builtin_memcpy(key.ends, to_server ? p->key : p->key + 16, 16);
	__builtin_memcpy(key.ends + 16, to_server ? p->key + 16 : p->key, 16);
	__builtin_memcpy(key.ends + 32, to_server ? p->key + 32 : p->key + 34, 2);
	__builtin_memcpy(key.ends + 34, to_server ? p->key + 34 : p->key + 32, 2);
	return key;
}

static __always_inline int stick(struct flow_state *f)
{
	f->sticky = f->on = f->ever = 1;
	return 1;
}

/* The segment does not begin where a request does, so user space has to find its own way in. */
static __always_inline int stick_inside(struct flow_state *f)
{
	if (!f->on)
		f->resume_client = f->resume_server = 0;
	return stick(f);
}

/* Walk the automaton on; how many bytes it took, up to the end of the head. */
static __always_inline __u32 walk(const struct selection *s, const __u8 *bytes, __u32 count, struct flow_state *f)
{
	__u32 state = f->automaton, outputs = f->outputs, i;
	const __u16 *next = (const __u16 *)s->next;
	__u64 length = f->length, too_large = 0;

	/* Three conditions a turn and no more: the verifier notes each on its way to the end, and gives up at 8192. */
#pragma clang loop unroll(disable)
	for (i = 0; i < SCAN_MAX_BYTES; i++) {
		__u32 entry, output, byte;
		__u64 digit;

		if (i >= count)
			break;
		byte = bytes[i];
		entry = next[(state & STATE_MASK) * CLASSES_MAX | (s->classes[byte] & (CLASSES_MAX - 1))];
		state = entry & STATE_MASK;
		if (!(entry & HAS_OUTPUT))
			continue;
		output = s->outputs[state];
		digit = output / LENGTH_DIGIT & 1;
		length = length * (1 + 9 * digit) + (byte & 15) * digit;
		too_large |= length / LENGTH_MAX;
		outputs |= (output & outputs & LENGTH_NAME) * (STICKY / LENGTH_NAME) | output; /* two are one too many */
		if (output & HEAD_END) {
			i++;
			break;
		}
	}
	f->automaton = state;
	f->outputs = too_large ? outputs | STICKY : outputs;
	f->length = too_large ? 0 : length;
	return i;
}

/* A head came to its end `used` bytes into the segment: see what follows from it. */
static __always_inline int take_head(struct flow_state *f, const struct segment_event *event, __u32 used, int wanted)
{
	__u32 end = event->seq + used + f->length;

	f->reading = 0;
	if (f->outputs & STICKY || (__s32)(event->seq + event->length - end) > 0)
		return stick(f);
	f->boundary = end;
	f->known = f->asked = 1;
	f->answered = 0;
	if (wanted) {
		f->on = f->ever = 1;
		return 1;
	}
	f->on = 0;
	f->resume_client = f->resume_server = 1;
	return 0;
}

/* Payload of a client: 1 to copy it. */
static __always_inline int follow_request(struct __sk_buff *skb, const struct choice *choice, struct flow_state *f,
					  struct scratch_record *record, __u32 payload_at)
{
	const struct segment_event *event = &record->event;
	__s32 ahead = event->seq - f->boundary;
	__u64 count = event->length;
	__u32 used;

	if (f->sticky)
		return 1;
	if (f->known && ahead < 0) /* a body, or a copy of something earlier */
		return ahead + (__s32)event->length > 0 ? stick_inside(f) : f->on;
	if (f->known && ahead > 0) /* a hole */
		return stick_inside(f);
	if (f->reading && f->set != choice->set) /* its beginning was read with other tables */
		return stick(f);
	if (!f->reading) {
		/* Pipelined, for the client has not had all that it asked for: whose answer comes next cannot be told here. */
		if (f->asked && (!f->answered || (__s32)(event->ack - f->sent) < 0))
			return stick(f);
		f->automaton = 0;
		f->outputs = f->length = 0;
		f->set = choice->set;
	}
	if (count > SCAN_MAX_BYTES)
		count = SCAN_MAX_BYTES;
	/* As in `copy`: the verifier must see the bounds on the register that the helper gets. */
	asm volatile("" : "+r"(count));
	count &= 2 * SCAN_MAX_BYTES - 1;
	if (count == 0 || count > SCAN_MAX_BYTES ||
	    bpf_skb_load_bytes(skb, payload_at, record->payload, count) < 0)
		return stick(f);
	used = walk(choice->tables, record->payload, count, f);
	if (!(f->outputs & REQUEST_LINE) && !f->known) { /* in the middle of something: wait for a request */
		f->on = f->ever = 1;
		return 1;
	}
	if (f->outputs & HEAD_END) {
		__u32 index = (choice->address & (ADDRESS_MASKS - 1)) * HEAD_MASKS | (f->outputs & HEAD_TESTS);
		/* A head of which a part was copied already is copied whole. */
		int wanted = f->reading || f->outputs & FOLD ||
			     ((const __u16 *)choice->tables->wanted)[index] & choice->shadows;

		return f->outputs & REQUEST_LINE ? take_head(f, event, used, wanted) : stick(f);
	}
	if (event->length > SCAN_MAX_BYTES || f->reading >= READING_MAX)
		return stick(f);
	f->reading++;
	f->boundary = event->seq + event->length;
	f->known = f->on = f->ever = 1;
	return 1;
}

/* The flow's state, made when it is new; a SYN begins it anew. */
static __always_inline struct flow_state *flow_state_of(struct flow_key *key, const struct segment_event *event)
{
	struct flow_state *f = flows.lookup(key);
	struct flow_state fresh = {};
	int begins = event->to_server && event->flags & TCP_SYN;

	if (f && !begins)
		return f;
	if (begins) {
		fresh.boundary = event->seq + 1;
		fresh.known = fresh.resume_client = fresh.resume_server = 1;
		fresh.ever = f ? f->ever : 0;
	}
	flows.update(key, &fresh);
	return flows.lookup(key);
}

enum followed { LEAVE = 0, COPY = 1, COPY_FLAGS = 2 };

/* What to do with the segment; `resume` is where the flow keeps that its half has to be resumed. COPY_FLAGS: its payload
 * is not wanted, but whoever follows the flow is to know that it begins or ends. */
static __always_inline int follow(struct __sk_buff *skb, const struct packet *p, const struct choice *choice,
				  struct scratch_record *record, __u32 payload_at, __u8 **resume)
{
	const struct segment_event *event = &record->event;
	struct flow_key key = flow_key_of(p, event->to_server);
	struct flow_state *f = flow_state_of(&key, event);
	__u32 end = event->seq + event->length;

	if (!f)
		return COPY;
	*resume = event->to_server ? &f->resume_client : &f->resume_server;
	/* Data in a SYN (TCP Fast Open) may come again in the next segment, or not: user space sorts that out. */
	if (event->flags & TCP_SYN && event->length)
		return stick_inside(f);
	if (event->to_server && event->length) {
		if (follow_request(skb, choice, f, record, payload_at))
			return COPY;
	} else if (event->length) {
		if (!f->answered || (__s32)(end - f->sent) > 0)
			f->sent = end;
		f->answered = 1;
		if (f->on)
			return COPY;
	}
	return f->ever && event->flags & (TCP_SYN | TCP_FIN | TCP_RST) ? COPY_FLAGS : LEAVE;
}

#endif
