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
#define SHADOWS_MAX 8
#define ADDRESS_MASKS 256 /* 8 tests on the client's address, */
#define HEAD_MASKS 256    /* and 8 on the head */
#define STATES_MAX 4096
#define CLASSES_MAX 64
#define STATE_MASK 0x0fff
#define WANTED_BYTES 131072 /* 2 * ADDRESS_MASKS * HEAD_MASKS */
#define NEXT_BYTES 524288   /* 2 * STATES_MAX * CLASSES_MAX */
#define HAS_OUTPUT 0x8000
#define SCAN_MAX_BYTES 2048 /* of a segment; a head that goes on behind them counts as wanted */

#define SENT_SLOTS 16384
#define LATENCY_UNIT_BITS 8 /* 256 ns */
#define LATENCY_STEPS 16    /* buckets for each power of two, so each is at most 1/16 wide */
#define LATENCY_BUCKETS 512 /* a power of two; those up to 2**40 ns are used */

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
	__u8 resumed;   /* RESUMED: what came before it in its direction was left out on purpose */
	__u8 key[KEY_V6_BYTES]; /* source, destination address, source, destination port, network order, packed */
};

/* What the agent tells the program; one element, mapped into the agent, so that a change needs no system call. */
struct control {
	__u64 lease_until_ns; /* CLOCK_MONOTONIC; later than that the program does nothing. 0: stopped */
	__u64 seed;
	__u64 budget_packets; /* copies allowed per CPU and second, 0: no limit */
	__u64 budget_bytes;   /* payload bytes allowed per CPU and second, 0: no limit */
	__u32 tables;         /* bit 0: which of the two sets decides; the rest: generation, new with each change */
	__u32 enabled;        /* shadows that are on, a bit each: off takes effect with this one store */
	__u32 workers;        /* rings in use */
	__u32 own_mark;       /* SO_MARK of the agent's own sockets: never captured; 0: none */
	__u32 request_limit;  /* payload bytes copied of a segment towards the server */
	__u32 response_limit; /* and from it */
	__u32 harm_ppm;       /* production's latency is measured of flows whose place lies below it; 0: of none */
	__u32 harm_phase;     /* PHASE_MASK: what is being measured; the rest: generation, new with each change */
};

/* Of control.harm_phase. Two phases are counted, each on its own. */
#define PHASE_MASK 3
#define PHASES 2
#define PHASE_PAUSED 2 /* or 3: nothing is counted */

/* Of segment_event.resumed. */
#define RESUMED 1
#define PENDING 2 /* besides: one answer is still to come that belongs to what was left out */

/* A shadow takes flows whose place among PPM lies in here. */
struct window {
	__u32 from_ppm;
	__u32 to_ppm;
};

/* One of the two sets of tables: what the shadows' criteria come to, as far as packets show it. agent/select/superset.py
 * makes them. A mask of shadows has a bit each; tests on the client's address and tests on the head are numbered, and
 * a mask of them says which are true. */
struct selection {
	__u32 shadows;   /* in use */
	__u32 by_client; /* mask of those whose window holds the client's place, not the connection's */
	__u32 addressed; /* 1: the client's address has to be looked up */
	__u32 headed;    /* 1: for some shadow the request's head decides */
	struct window windows[SHADOWS_MAX];
	__u16 possible[ADDRESS_MASKS]; /* by mask of address tests: shadows that some head would satisfy */
	__u16 certain[ADDRESS_MASKS];  /* the same: shadows that every head satisfies */
	/* Large tables are bytes to the compiler, which needs 15 s for as many elements of two bytes. */
	__u8 wanted[WANTED_BYTES];     /* __u16: by mask of address tests, then of head tests: the shadows satisfied */
	__u8 classes[256];             /* the automaton: class of a byte, */
	__u32 outputs[STATES_MAX];     /* what reaching a state shows, */
	__u8 next[NEXT_BYTES];         /* and, __u16, the state after a byte: STATE_MASK of it; HAS_OUTPUT: it shows something */
};

/* What reaching a state shows: bits 0 to 7 are head tests, and these. */
#define HEAD_TESTS 0xff
#define HEAD_END (1U << 16)
#define REQUEST_LINE (1U << 17)
#define LENGTH_NAME (1U << 18)  /* behind "content-length:" */
#define LENGTH_DIGIT (1U << 19) /* a digit of its value */
#define STICKY (1U << 20)       /* where the next request begins cannot be known */
#define FOLD (1U << 21)         /* a folded header: the automaton reads none */

/* What is known of a flow whose heads decide. The client's sequence number `boundary` is where its next request begins,
 * or where the head that is being read goes on. */
struct flow_state {
	__u32 boundary;
	__u32 outputs;       /* of the head that is being read */
	__u32 length;        /* its content-length so far */
	__u32 excess;        /* not 0: it is too large */
	__u32 sent;          /* the server's sequence number behind all that it sent */
	__u32 tables;        /* control.tables when it was last looked at */
	__u16 automaton;     /* its state */
	__u8 reading;        /* segments of a head that is being read; 0: none is */
	__u8 known;          /* 1: `boundary` holds */
	__u8 on;             /* 1: its segments are copied */
	__u8 ever;           /* 1: some were, so user space wants to hear of its end */
	__u8 sticky;         /* 1: on until the end, since requests can no longer be told apart */
	__u8 asked;          /* 1: a request came, */
	__u8 answered;       /* and bytes from the server after it */
	__u8 resume_client;  /* RESUMED: the next copied segment of this half follows what was left out */
	__u8 resume_server;
	__u8 ended;          /* directions that sent FIN: 1 the server's, 2 the client's */
};

/* Counted per CPU. Every segment on a watched port ends in exactly one of the first nine. */
struct counters {
	__u64 lease_over;    /* the agent had not renewed its lease */
	__u64 own;           /* the agent's own traffic */
	__u64 unsampled;     /* outside every shadow's percentage */
	__u64 unmatched;     /* no shadow's criteria want it */
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

/* When the present request of one of the agent's own connections left; mapped into the workers. */
struct sent_slot {
	__u64 first_ns; /* CLOCK_MONOTONIC, of its first new segment; 0: none yet */
	__u64 last_ns;  /* of its last one so far */
	__u32 version;  /* odd while it is being written */
	__u32 seq;      /* behind all that was sent */
	__u32 ack;      /* what the last new segment acknowledged */
	__u8 key[KEY_V6_BYTES]; /* as the key of an event, zeros behind it */
};

/* What is known of a flow whose latency is measured. */
struct production_flow {
	__u64 asked_ns;  /* when the client's last byte came that is not answered yet; 0: all is */
	__u32 word;      /* control.harm_phase then */
	__u32 asked;     /* the client's sequence number behind all it sent, */
	__u32 told;      /* and the server's */
	__u32 told_some; /* 1: `told` holds */
};

/* Production's answers in one phase. */
struct production_counts {
	__u64 buckets[LATENCY_BUCKETS]; /* by the time they took, see bucket_of in production.h */
	__u64 errors;                   /* of them, those with a status of 500 and more */
};

/* Budget of the running second, per CPU. */
struct budget {
	__u64 second;
	__u64 packets;
	__u64 bytes;
};

#endif
