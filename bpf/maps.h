/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef SHADOWTAP_MAPS_H
#define SHADOWTAP_MAPS_H

#include "event.h"

#ifndef BPF_F_MMAPABLE
#define BPF_F_MMAPABLE (1U << 10)
#endif

#define PORT_WORDS 1024 /* 65536 ports, one bit each */
#define RINGS_MAX 64
#define NO_WAKEUP 1 /* BPF_RB_NO_WAKEUP: workers poll, production never pays for waking them */

/* A record is put together here, one slot a CPU: a per-CPU map may not hold values over 32 KiB, and the stack 512 bytes. */
struct scratch_record {
	struct segment_event event;
	__u8 payload[PAYLOAD_MAX_BYTES + 1];
};

/* The agent's orders and its lease, mapped into the agent. */
BPF_F_TABLE("array", u32, struct control, control, 1, BPF_F_MMAPABLE);
/* Server ports, a bit each. */
BPF_F_TABLE("array", u32, u64, ports, PORT_WORDS, BPF_F_MMAPABLE);
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
