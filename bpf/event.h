/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Layouts shared with Python: agent/capture/layout.py reads the same offsets, tests/bpf/test_layout.py compares them.
 * No padding is left to the compiler (the test compiles this file with -Wpadded -Werror).
 */
#ifndef SHADOWTAP_EVENT_H
#define SHADOWTAP_EVENT_H

#include <linux/types.h>

#define KEY_V4_BYTES 12
#define KEY_V6_BYTES 36
#define PAYLOAD_MAX_BYTES 0xffff /* a mask; GRO and GSO make no larger segment (of BIG TCP the rest is cut) */
#define PPM 1000000

/* One copied segment; `captured` bytes of payload follow it in the ring. Integers in host order. */
struct segment_event {
	__u64 t_ns;     /* CLOCK_MONOTONIC */
	__u32 seq;
	__u32 ack;
	__u32 length;   /* TCP payload on the wire */
	__u32 captured; /* of it, bytes that follow */
	__u8 flags;     /* TCP flags */
	__u8 key_bytes; /* KEY_V4_BYTES or KEY_V6_BYTES */
	__u8 to_server; /* 1: towards the server port */
	__u8 reserved;
	__u8 key[KEY_V6_BYTES]; /* source, destination address, source, destination port, network order, packed */
};

/* What the agent tells the program; one element, mapped into the agent, so that a change needs no system call. */
struct control {
	__u64 lease_until_ns; /* CLOCK_MONOTONIC; later than that the program does nothing. 0: stopped */
	__u64 seed;
	__u64 budget_packets; /* copies allowed per CPU and second, 0: no limit */
	__u64 budget_bytes;   /* payload bytes allowed per CPU and second, 0: no limit */
	__u32 sample_ppm;     /* of PPM */
	__u32 sample_by;      /* enum sample_by */
	__u32 workers;        /* rings in use */
	__u32 own_mark;       /* SO_MARK of the agent's own sockets: never captured; 0: none */
	__u32 request_limit;  /* payload bytes copied of a segment towards the server */
	__u32 response_limit; /* and from it */
};

enum sample_by { SAMPLE_BY_CONNECTION = 0, SAMPLE_BY_CLIENT = 1 };

/* Counted per CPU. Every segment on a watched port ends in exactly one of the first eight. */
struct counters {
	__u64 lease_over;    /* the agent had not renewed its lease */
	__u64 own;           /* the agent's own traffic */
	__u64 unsampled;
	__u64 pure_acks;     /* sampled, nothing to copy */
	__u64 copied;
	__u64 ring_full;     /* sampled, not copied: no room in the worker's ring */
	__u64 over_budget;   /* sampled, not copied: budget of this second used up */
	__u64 unreadable;    /* lengths that contradict the packet */
	__u64 copied_bytes;
	__u64 lost_bytes;    /* payload of ring_full and over_budget */
	__u64 lost_to_server; /* segments of ring_full and over_budget that carried request bytes */
	__u64 cut;           /* copied, but not all of the payload */
	__u64 fragments;     /* IP fragments: no ports to look at, counted whatever they carry */
};

/* Budget of the running second, per CPU. */
struct budget {
	__u64 second;
	__u64 packets;
	__u64 bytes;
};

#endif
