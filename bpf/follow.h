/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Where request heads decide: follows each connection just far enough to know where a request begins, walks the
 * automaton over its head, and leaves requests that no shadow can want, and their answers, in the kernel.
 *
 * It may be generous, never mean: whatever it cannot tell (a head that goes on, chunked requests, pipelining, a hole, a
 * protocol it does not know) it copies. A connection whose requests cannot be told apart any more is *sticky*: copied
 * to its end. A connection that it meets in the middle is copied until a segment is a request's whole head, where user
 * space picks it up, too. So is one that was out of sight for a while: whose state is older than the last change of the
 * tables but one, or was pushed out by others. One thing it cannot see: the rest of an answer that is still coming when a
 * client has acknowledged all that came so far, and pipelines a request that nobody wants, is left out with that one's.
 *
 *     off ──wanted head──► on ──unwanted head, all answers begun──► off          anything unclear ──► sticky
 *
 * User space sees the parts that were left out as such: the first segment copied after them says `resumed`.
 */
#ifndef SHADOWTAP_FOLLOW_H
#define SHADOWTAP_FOLLOW_H

#include "match.h"

#define READING_MAX 32 /* segments of one head */
#define OVER 3 /* of flow_state.ended */
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

/* A request begins while the answer to another is still to come: which answers are whose cannot be told here. */
static __always_inline int stick_pipelined(struct flow_state *f)
{
	if (!f->on && !f->answered)
		f->resume_client |= PENDING;
	return stick(f);
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
	__u32 state = f->automaton, outputs = f->outputs, used = count, i;
	const __u16 *next = (const __u16 *)s->next;
	__u64 length = f->length, too_large = 0;

	/* Few conditions: the verifier goes both ways at each, in every turn (300 000 steps of the million it allows), and
	 * gives up when a way has 8192 of them. So a state that shows nothing (no HAS_OUTPUT) is not passed over. */
#pragma clang loop unroll(disable)
	for (i = 0; i < SCAN_MAX_BYTES; i++) {
		__u32 entry, output, byte;
		__u64 digit;

		/* Without it LLVM computes with the index what the verifier then takes for many values at once. */
		asm volatile("" : "+r"(i));
		if (i >= count)
			break;
		byte = bytes[i];
		entry = next[(state & STATE_MASK) * CLASSES_MAX | (s->classes[byte] & (CLASSES_MAX - 1))];
		state = entry & STATE_MASK;
		output = s->outputs[state];
		digit = output / LENGTH_DIGIT & 1;
		length = length * (1 + 9 * digit) + (byte & 15) * digit;
		too_large |= length / LENGTH_MAX;
		outputs |= (output & outputs & LENGTH_NAME) * (STICKY / LENGTH_NAME) | output; /* two are one too many */
		if (output & HEAD_END) {
			used = i + 1;
			break;
		}
	}
	f->automaton = state;
	f->outputs = outputs;
	f->length = length;
	f->excess = too_large | too_large >> 32;
	/* What is decided on from here comes from memory. If it came from registers, the verifier would track their values
	 * back through every turn of the loop, and walk it anew for each. */
	asm volatile("" ::: "memory");
	if (f->excess) {
		f->outputs |= STICKY;
		f->length = 0;
	}
	return used;
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
	f->resume_client = f->resume_server = RESUMED;
	return 0;
}

/* Payload of a client: 1 to copy it. */
static __always_inline int follow_request(struct __sk_buff *skb, const struct choice *choice, struct flow_state *f,
					  struct scratch_record *record, __u32 payload_at)
{
	const struct segment_event *event = &record->event;
	__s32 ahead = event->seq - f->boundary;
	__u64 count;
	__u32 used;

	if (f->sticky)
		return 1;
	if (f->known && ahead < 0) /* a body, or a copy of something earlier */
		return ahead + (__s32)event->length > 0 ? stick_inside(f) : f->on;
	if (f->known && ahead > 0) /* a hole */
		return stick_inside(f);
	if (!f->reading) {
		if (f->asked && (!f->answered || (__s32)(event->ack - f->sent) < 0))
			return stick_pipelined(f);
		f->automaton = 0;
		f->outputs = f->length = 0;
	}
	record->shadows = choice->shadows;
	record->address = choice->address;
	record->count = event->length < SCAN_MAX_BYTES ? event->length : SCAN_MAX_BYTES;
	asm volatile("" ::: "memory");
	/* As in `copy`: the verifier must see the bounds on the register that the helper gets. */
	count = record->count;
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
		__u32 index = (record->address & (ADDRESS_MASKS - 1)) * HEAD_MASKS | (f->outputs & HEAD_TESTS);
		/* A head of which a part was copied already is copied whole. */
		int wanted = f->reading || f->outputs & FOLD ||
			     ((const __u16 *)choice->tables->wanted)[index] & record->shadows;

		return f->outputs & REQUEST_LINE ? take_head(f, event, used, wanted) : stick(f);
	}
	if (event->length > SCAN_MAX_BYTES || f->reading >= READING_MAX)
		return stick(f);
	f->reading++;
	f->boundary = event->seq + event->length;
	f->known = f->on = f->ever = 1;
	return 1;
}

/* A connection begins: its first request is at `boundary`. */
static __always_inline void begin(struct flow_state *f, __u32 boundary)
{
	f->boundary = boundary;
	f->known = 1;
	f->on = f->reading = f->asked = f->answered = f->sticky = f->ended = 0;
	f->resume_client = f->resume_server = RESUMED;
}

/* The flow's state, made when it is new. */
static __always_inline struct flow_state *flow_state_of(struct flow_key *key, const struct choice *choice,
							const struct segment_event *event)
{
	struct flow_state *f = flows.lookup(key);
	struct flow_state fresh = {.tables = choice->generation};

	if (f)
		return f;
	if (event->to_server && event->flags & TCP_SYN)
		begin(&fresh, event->seq + 1);
	else
		fresh.on = fresh.ever = 1;
	flows.insert(key, &fresh); /* the other direction may have been first */
	return flows.lookup(key);
}

/* Nothing is known any more of where requests begin; until the next is found, all is copied. */
static __always_inline void lose_sight(struct flow_state *f)
{
	f->known = f->reading = f->asked = f->answered = f->sticky = f->ended = 0;
	f->resume_client = f->resume_server = 0;
	f->on = f->ever = 1;
}

/* Bring a state that was there before up to date. */
static __always_inline void refresh(struct flow_state *f, const struct choice *choice, const struct segment_event *event)
{
	/* Generations go up by one in bits 1 and up: by more than one, and the flow was perhaps not looked at meanwhile. */
	__u32 generations = (choice->generation >> 1) - (f->tables >> 1);

	if (generations > 1) {
		lose_sight(f);
	} else if (generations && f->reading) { /* the head's beginning was read with other tables */
		f->reading = f->known = 0;
		f->on = f->ever = 1;
	}
	f->tables = choice->generation;
	if (!event->to_server || !(event->flags & TCP_SYN) || f->boundary == event->seq + 1)
		return;
	/* The same ports again. If the old connection was not seen to end, the server may refuse this: the next request
	 * tells. User space knows the old one if any of it was copied, and is told of this SYN. */
	if (f->ended != OVER) {
		lose_sight(f);
		return;
	}
	begin(f, event->seq + 1);
}

/* Where a flow keeps that its half has to be resumed. */
static __always_inline __u8 *resume_of(struct flow_state *f, const struct segment_event *event)
{
	return event->to_server ? &f->resume_client : &f->resume_server;
}

enum followed { LEAVE = 0, COPY = 1, COPY_FLAGS = 2 };

/* What to do with the segment; `state` is that of its flow. COPY_FLAGS: its payload is not wanted, but whoever follows
 * the flow is to know that it begins or ends. */
static __always_inline int follow(struct __sk_buff *skb, const struct packet *p, const struct choice *choice,
				  struct scratch_record *record, __u32 payload_at, struct flow_state **state)
{
	const struct segment_event *event = &record->event;
	struct flow_key key = flow_key_of(p, event->to_server);
	struct flow_state *f = flow_state_of(&key, choice, event);

	if (!f)
		return COPY;
	refresh(f, choice, event);
	*state = f;
	if (event->flags & (TCP_FIN | TCP_RST))
		f->ended |= event->flags & TCP_RST ? OVER : 1 << event->to_server;
	/* Data in a SYN (TCP Fast Open) may come again in the next segment, or not: user space sorts that out. */
	if (event->flags & TCP_SYN && event->length)
		return stick_inside(f);
	if (event->to_server && event->length) {
		if (follow_request(skb, choice, f, record, payload_at))
			return COPY;
	} else if (event->length) {
		__u32 end = event->seq + event->length;

		if (!f->answered || (__s32)(end - f->sent) > 0)
			f->sent = end;
		f->answered = 1;
		if (f->on)
			return COPY;
	}
	return f->ever && event->flags & (TCP_SYN | TCP_FIN | TCP_RST) ? COPY_FLAGS : LEAVE;
}

#endif
