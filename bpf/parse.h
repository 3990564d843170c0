/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * From a packet to the facts the tap decides on. The usual packet (no tags, no IP options, headers in the linear part)
 * is read in place, which costs half as much; any other has its headers copied to the stack (bpf_skb_load_bytes),
 * which reads non-linear packets too and never changes the packet, as pulling would.
 */
#ifndef SHADOWTAP_PARSE_H
#define SHADOWTAP_PARSE_H

#include "event.h"

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_IPV6 0x86dd
#define ETHERTYPE_VLAN 0x8100
#define ETHERTYPE_QINQ 0x88a8
#define PROTOCOL_TCP 6
#define IPV6_EXTENSIONS_MAX 4

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

struct ipv4_header {
	__u8 version_ihl, tos;
	__be16 total_length, id, fragment;
	__u8 ttl, protocol;
	__be16 checksum;
	__be32 source, destination;
};

struct ipv6_header {
	__be32 version_class_flow;
	__be16 payload_length;
	__u8 next_header, hop_limit;
	__u8 source[16], destination[16];
};

struct tcp_header {
	__be16 source, destination;
	__be32 seq, ack;
	__u8 data_offset, flags;
	__be16 window, checksum, urgent;
};

/* What a segment's TCP header says, in host order. */
struct stretch {
	__u32 seq, ack;
	__u32 length; /* of the payload on the wire */
	__u32 flags;
};

/* What is known of one TCP segment. */
struct packet {
	__u8 key[KEY_V6_BYTES];
	__u32 key_bytes;
	__u32 tcp_at;  /* offsets from the packet's start */
	__u32 ip_end;  /* as the IP header says */
	__u16 source_port, destination_port;
};

enum parsed { PARSED_NO = 0, PARSED_TCP = 1, PARSED_FRAGMENT = 2, PARSED_UNUSUAL = 3 };

/* Ethertype of the network header and its offset; up to two VLAN tags that the card left in the packet. */
static __always_inline __u16 network_header(struct __sk_buff *skb, __u32 *at)
{
	__be16 type = skb->protocol;
	__u32 offset = LINK_HEADER_BYTES;

	if (LINK_HEADER_BYTES == 14 && bpf_skb_load_bytes(skb, 12, &type, 2) < 0)
		return 0;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (type != bpf_htons(ETHERTYPE_VLAN) && type != bpf_htons(ETHERTYPE_QINQ))
			break;
		if (bpf_skb_load_bytes(skb, offset + 2, &type, 2) < 0)
			return 0;
		offset += 4;
	}
	*at = offset;
	return bpf_ntohs(type);
}

/* What the header at offset `at` says; `ip` may lie in the packet or on the stack. */
static __always_inline int ipv4_facts(struct __sk_buff *skb, const struct ipv4_header *ip, __u32 at, struct packet *p)
{
	if (ip->protocol != PROTOCOL_TCP || (ip->version_ihl & 0xf0) != 0x40 || (ip->version_ihl & 15) < 5)
		return PARSED_NO;
	if (ip->fragment & bpf_htons(0x3fff)) /* offset, or more fragments */
		return PARSED_FRAGMENT;
	p->tcp_at = at + (ip->version_ihl & 15) * 4;
	/* Length 0 is what a packet too large for the field carries (BIG TCP). */
	p->ip_end = ip->total_length ? at + bpf_ntohs(ip->total_length) : skb->len;
	p->key_bytes = KEY_V4_BYTES;
	__builtin_memcpy(p->key, &ip->source, 8);
	return PARSED_TCP;
}

static __always_inline int parse_ipv4(struct __sk_buff *skb, __u32 at, struct packet *p)
{
	struct ipv4_header ip;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) < 0)
		return PARSED_NO;
	return ipv4_facts(skb, &ip, at, p);
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, __u32 at, struct packet *p)
{
	struct ipv6_header ip;
	__u8 next, extension[2];

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) < 0)
		return PARSED_NO;
	next = ip.next_header;
	p->tcp_at = at + sizeof(ip);
	p->ip_end = ip.payload_length ? p->tcp_at + bpf_ntohs(ip.payload_length) : skb->len;
#pragma unroll
	for (int i = 0; i < IPV6_EXTENSIONS_MAX; i++) {
		if (next == PROTOCOL_TCP)
			break;
		if (next == 44)
			return PARSED_FRAGMENT;
		if (next != 0 && next != 43 && next != 60)
			return PARSED_NO;
		if (bpf_skb_load_bytes(skb, p->tcp_at, extension, 2) < 0)
			return PARSED_NO;
		next = extension[0];
		p->tcp_at += (extension[1] + 1) * 8;
	}
	if (next != PROTOCOL_TCP)
		return PARSED_NO;
	p->key_bytes = KEY_V6_BYTES;
	__builtin_memcpy(p->key, ip.source, 32);
	return PARSED_TCP;
}

static __always_inline void set_ports(struct packet *p, const __be16 *ports)
{
	__builtin_memcpy(p->key + (p->key_bytes == KEY_V4_BYTES ? 8 : 32), ports, 4);
	p->source_port = bpf_ntohs(ports[0]);
	p->destination_port = bpf_ntohs(ports[1]);
}

/* The usual packet, read in place; PARSED_UNUSUAL when it is another one and has to be copied. */
static __always_inline int parse_in_place(struct __sk_buff *skb, struct packet *p)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ipv4_header *ip = data + LINK_HEADER_BYTES;
	__be16 *ports = (void *)(ip + 1);
	int parsed;

	if ((void *)(ports + 2) > end)
		return PARSED_UNUSUAL;
	if (LINK_HEADER_BYTES == 14 && *(__be16 *)(data + 12) != bpf_htons(ETHERTYPE_IPV4))
		return PARSED_UNUSUAL;
	if (ip->version_ihl != 0x45)
		return PARSED_UNUSUAL;
	parsed = ipv4_facts(skb, ip, LINK_HEADER_BYTES, p);
	if (parsed == PARSED_TCP)
		set_ports(p, ports);
	return parsed;
}

/* Fill `p` up to the ports; the TCP header itself is read only for packets on a watched port. */
static __always_inline int parse_packet(struct __sk_buff *skb, struct packet *p)
{
	__u32 at = 0;
	__be16 ports[2];
	__u16 type;
	int parsed = parse_in_place(skb, p);

	if (parsed != PARSED_UNUSUAL)
		return parsed;
	parsed = PARSED_NO;
	type = network_header(skb, &at);
	if (type == ETHERTYPE_IPV4)
		parsed = parse_ipv4(skb, at, p);
	else if (type == ETHERTYPE_IPV6)
		parsed = parse_ipv6(skb, at, p);
	if (parsed != PARSED_TCP)
		return parsed;
	if (bpf_skb_load_bytes(skb, p->tcp_at, ports, 4) < 0)
		return PARSED_NO;
	set_ports(p, ports);
	return PARSED_TCP;
}

/* Read the TCP header; where the payload begins, 0 when the lengths make no sense. */
static __always_inline __u32 read_tcp(struct __sk_buff *skb, const struct packet *p, struct stretch *s)
{
	struct tcp_header tcp;
	__u32 payload_at, end;

	if (bpf_skb_load_bytes(skb, p->tcp_at, &tcp, sizeof(tcp)) < 0)
		return 0;
	payload_at = p->tcp_at + (tcp.data_offset >> 4) * 4;
	end = p->ip_end > skb->len ? skb->len : p->ip_end;
	/* What production's stack throws away must not be the first copy of a byte here. */
	if (tcp.data_offset < 0x50 || payload_at > end)
		return 0;
	s->seq = bpf_ntohl(tcp.seq);
	s->ack = bpf_ntohl(tcp.ack);
	s->length = end - payload_at;
	s->flags = tcp.flags;
	return payload_at;
}

#endif
