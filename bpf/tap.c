/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * The tap: copies sampled TCP segments of watched ports into the rings of the workers. It never changes, delays or
 * drops a packet: every path returns PASS, which lets the next program or filter have it.
 *
 * Compiled by bcc with: NCPUS, LINK_HEADER_BYTES (14 for Ethernet and loopback, 0 for links without a header),
 * LOOPBACK (1: every packet would be seen twice, so only ingress looks, and both directions there).
 */
#include "match.h"
#include "follow.h"
#include "production.h"
#include "sent.h"

#define PASS (-1) /* TCX_NEXT, and TC_ACT_UNSPEC for clsact */

enum hook { INGRESS, EGRESS };

static __always_inline int within_budget(const struct control *c, __u64 now_ns, __u32 bytes)
{
	u32 zero = 0;
	struct budget *b;
	__u64 second = now_ns >> 30; /* 1.07 s: a shift, not a division */

	if (!c->budget_packets && !c->budget_bytes)
		return 1;
	b = budgets.lookup(&zero);
	if (!b)
		return 1;
	if (b->second != second) {
		b->second = second;
		b->packets = 0;
		b->bytes = 0;
	}
	b->packets++;
	b->bytes += bytes;
	return (!c->budget_packets || b->packets <= c->budget_packets) &&
	       (!c->budget_bytes || b->bytes <= c->budget_bytes);
}

/* Put the payload behind the record's event and hand both to the worker's ring; 0 when there was no room. */
static __always_inline int copy(struct __sk_buff *skb, struct scratch_record *record, __u32 payload_at, __u32 worker)
{
	void *ring = rings.lookup(&worker);
	__u64 captured = record->event.captured;

	if (!ring)
		return 0;
	/* The verifier must see the bounds, 1 to PAYLOAD_MAX_BYTES, on the very register that the helper gets; without the
	 * barrier LLVM checks one copy and passes another ("invalid zero-sized read", "R4 unbounded memory access"). */
	asm volatile("" : "+r"(captured));
	captured &= PAYLOAD_MAX_BYTES;
	if (captured != 0) {
		asm volatile("" : "+r"(captured));
		if (captured > PAYLOAD_MAX_BYTES || captured == 0 ||
		    bpf_skb_load_bytes(skb, payload_at, record->payload, captured) < 0)
			captured = 0;
	}
	captured &= PAYLOAD_MAX_BYTES;
	record->event.captured = captured;
	return bpf_ringbuf_output(ring, record, sizeof(record->event) + captured, NO_WAKEUP) == 0;
}

/* Fill the event in, all but `captured` and `resumed`; where the payload begins, 0 when the lengths make no sense. */
static __always_inline __u32 describe(struct __sk_buff *skb, const struct packet *p, struct segment_event *event)
{
	struct stretch s;
	__u32 payload_at = read_tcp(skb, p, &s);

	if (!payload_at)
		return 0;
	event->seq = s.seq;
	event->ack = s.ack;
	event->length = s.length;
	event->flags = s.flags;
	event->key_bytes = p->key_bytes;
	__builtin_memcpy(event->key, p->key, KEY_V6_BYTES);
	return payload_at;
}

/* What is done with a segment of a flow that some shadow may want. All that is known of it is kept in the record from
 * the start: the verifier walks the loop of `follow` anew for whatever else differs between the ways that lead there. */
static __always_inline void sampled_segment(struct __sk_buff *skb, const struct packet *p, const struct control *c,
					    struct counters *count, const struct choice *choice, __u32 worker,
					    int to_server, __u64 now_ns)
{
	u32 slot = bpf_get_smp_processor_id();
	struct scratch_record *record = scratch.lookup(&slot);
	struct segment_event *event;
	struct flow_state *state = NULL;
	__u32 payload_at, limit;

	if (!record)
		return;
	event = &record->event;
	payload_at = describe(skb, p, event);
	if (!payload_at) {
		count->unreadable++;
		return;
	}
	event->t_ns = now_ns;
	event->to_server = to_server;
	event->resumed = 0;
	if (event->length == 0 && !(event->flags & (TCP_FIN | TCP_SYN | TCP_RST))) {
		count->pure_acks++;
		return;
	}
	if (choice->by_head) {
		int followed = follow(skb, p, choice, record, payload_at, &state);

		if (followed == LEAVE) {
			count->unmatched++;
			return;
		}
		if (followed == COPY_FLAGS) {
			event->seq += event->length;
			event->length = 0;
		}
		if (state)
			event->resumed = *resume_of(state, event);
	}
	if (!within_budget(c, event->t_ns, event->length)) {
		count->over_budget++;
		goto lost;
	}
	limit = event->to_server ? c->request_limit : c->response_limit;
	if (limit > PAYLOAD_MAX_BYTES)
		limit = PAYLOAD_MAX_BYTES;
	event->captured = event->length < limit ? event->length : limit;
	if (copy(skb, record, payload_at, worker)) {
		count->copied++;
		count->copied_bytes += event->captured;
		if (event->captured < event->length)
			count->cut++;
		if (state)
			*resume_of(state, event) = 0;
		return;
	}
	count->ring_full++;
lost:
	/* What comes next does not begin with a message: for user space this is a loss like any other. */
	if (state && event->length)
		*resume_of(state, event) = 0;
	count->lost_bytes += event->length;
	if (event->to_server && event->length)
		count->lost_to_server++;
}

static inline __attribute__((always_inline)) int tap(struct __sk_buff *skb, enum hook hook)
{
	struct packet p = {};
	struct control *c;
	struct counters *count;
	struct choice choice = {};
	u32 zero = 0;
	__u64 now_ns, hash;
	int to_server, parsed;

	parsed = parse_packet(skb, &p);
	if (parsed == PARSED_NO)
		return PASS;
	c = control.lookup(&zero);
	count = counters.lookup(&zero);
	if (!c || !count)
		return PASS;
	if (parsed == PARSED_FRAGMENT) {
		count->fragments++;
		return PASS;
	}
	/* A load balancer is itself a client of its servers, often on the same port: what it sends to a watched port is
	 * not a user's request. Loopback shows both ends at once, so there the port alone decides. */
	to_server = watched(p.destination_port) && (LOOPBACK || hook == INGRESS);
	if (!to_server && !(watched(p.source_port) && (LOOPBACK || hook == EGRESS)))
		return PASS;
	now_ns = bpf_ktime_get_ns();
	if (now_ns >= c->lease_until_ns) {
		count->lease_over++;
		return PASS;
	}
	if (c->own_mark && skb->mark == c->own_mark) {
		count->own++;
		return PASS;
	}
	hash = connection_hash(&p, c->seed);
	if (c->harm_ppm && place_of(hash) < c->harm_ppm)
		note_production(skb, &p, hash, c->harm_phase, to_server, now_ns);
	choice.generation = c->tables;
	choice.set = choice.generation & 1;
	choice.tables = selections.lookup(&choice.set);
	if (!choice.tables)
		return PASS;
	if (!sampled(&p, c, hash, to_server, &choice)) {
		count->unsampled++;
		return PASS;
	}
	if (!matched(&p, to_server, &choice)) {
		count->unmatched++;
		return PASS;
	}
	sampled_segment(skb, &p, c, count, &choice, worker_of(hash, c), to_server, now_ns);
	return PASS;
}

int tap_ingress(struct __sk_buff *skb)
{
	return tap(skb, INGRESS);
}

int tap_egress(struct __sk_buff *skb)
{
	return tap(skb, EGRESS);
}

/* Hangs where replayed requests leave, which need not be the captured interface. */
int sent_egress(struct __sk_buff *skb)
{
	note_sent(skb);
	return PASS;
}
