/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef SHADOWTAP_MAPS_H
#define SHADOWTAP_MAPS_H

#include "event.h"

#ifndef BPF_F_MMAPABLE
#define BPF_F_MMAPABLE (1U << 10)
#endif

#define PORT_WORDS 1024 /* 65536 ports, one bit each */
#define RINGS_MAX 64
#define FLOWS_MAX 65536 /* 7 MB of kernel memory */
#define PRODUCTION_FLOWS_MAX 65536 /* 6 MB of kernel memory */
#define PREFIXES_MAX (1 << 20) /* a limit, not an allocation */
#define NO_WAKEUP 1 /* BPF_RB_NO_WAKEUP: workers poll, production never pays for waking them */

/* A record is put together here, one slot a CPU: a per-CPU map may not hold values over 32 KiB, and the stack 512 bytes. */
struct scratch_record {
	struct segment_event event;
	__u8 payload[PAYLOAD_MAX_BYTES + 1];
	__u32 shadows; /* what `follow` goes on with behind its loop */
	__u32 address;
	__u32 count;
	__u32 unused;
};

/* Longest prefix of an address. */
struct prefix4 {
	__u32 bits;
	__u8 address[4];
};

struct prefix6 {
	__u32 bits;
	__u8 address[16];
};

/* Both ends of a flow, the client's first; as the key of an event, zeros behind it. */
struct flow_key {
	__u8 ends[KEY_V6_BYTES];
};

/* The agent's orders and its lease, mapped into the agent. */
BPF_F_TABLE("array", u32, struct control, control, 1, BPF_F_MMAPABLE);
/* Server ports, a bit each. */
BPF_F_TABLE("array", u32, u64, ports, PORT_WORDS, BPF_F_MMAPABLE);
/* Two sets of what the criteria come to: one decides, the other can be written. Mapped into the agent, too. */
BPF_F_TABLE("array", u32, struct selection, selections, 2, BPF_F_MMAPABLE);
/* Of each set: address tests that are true, by the longest prefix of the client's address. Memory is taken as filled. */
BPF_F_TABLE("lpm_trie", struct prefix4, u32, addresses4_0, PREFIXES_MAX, BPF_F_NO_PREALLOC);
BPF_F_TABLE("lpm_trie", struct prefix4, u32, addresses4_1, PREFIXES_MAX, BPF_F_NO_PREALLOC);
BPF_F_TABLE("lpm_trie", struct prefix6, u32, addresses6_0, PREFIXES_MAX, BPF_F_NO_PREALLOC);
BPF_F_TABLE("lpm_trie", struct prefix6, u32, addresses6_1, PREFIXES_MAX, BPF_F_NO_PREALLOC);
/* Flows whose requests' heads decide; the longest unused is forgotten for a new one. */
BPF_TABLE("lru_hash", struct flow_key, struct flow_state, flows, FLOWS_MAX);
/* When the agent's own requests left, by the hash of their connections; the workers map it. */
BPF_F_TABLE("array", u32, struct sent_slot, sent_slots, SENT_SLOTS, BPF_F_MMAPABLE);
/* Flows whose latency is measured, by the hash of their connections. */
BPF_TABLE("lru_hash", u64, struct production_flow, production_flows, PRODUCTION_FLOWS_MAX);
/* What was measured in each phase; mapped into the agent. */
BPF_F_TABLE("array", u32, struct production_counts, production_latency, PHASES, BPF_F_MMAPABLE);
/* What happened, read by the agent about once a second. */
BPF_PERCPU_ARRAY(counters, struct counters, 1);
/* Token counts of the running second. */
BPF_PERCPU_ARRAY(budgets, struct budget, 1);
/* Where records are put together; NCPUS comes from the loader. */
BPF_ARRAY(scratch, struct scratch_record, NCPUS);
/* One ring a worker; the loader makes the rings and puts them in. The template only tells the kernel their type. */
BPF_RINGBUF_OUTPUT(ring_template, 1);
BPF_ARRAY_OF_MAPS(rings, "ring_template", RINGS_MAX);

#endif
