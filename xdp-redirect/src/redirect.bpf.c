// SPDX-License-Identifier: Apache-2.0
//
// Answers one question per frame: is this ours, and whose?
//
// What is ours goes to the AF_XDP socket of its (port, queue), or is dropped while no live worker
// serves that queue: TCP retransmits a drop, whereas a pass would earn a reset for translated
// flows and let a pod's traffic escape policy. Of a worker that is late, since it starves for its
// processor, only what begins TCP connections is: they would fill the rings that others need. What
// was never ours passes, always. No state is kept, and nothing is parsed beyond what the question
// needs; the sizes come from limits.rs.

#include "program.bpf.h"

#define inline __attribute__((always_inline)) inline

static long (*bpf_redirect_map)(void *map, u64 key, u64 flags) = (void *)51;
static u64 (*bpf_ktime_get_coarse_ns)(void) = (void *)160;

// Keys and values shared with rules.rs, which asserts the same sizes.
struct port_entry {
	u16 port;
	u8 kind;
	u8 flags;
	u32 queues;
};
struct prefix4 {
	u32 length;
	u32 address;
};
struct address6 {
	u32 word[4];
};
struct prefix6 {
	u32 length;
	struct address6 address;
};
// An address and the port of the pod that has it.
struct claim4 {
	u32 port, address;
};
struct claim6 {
	u32 port;
	struct address6 address;
};
struct heartbeat {
	u64 nanos;
	u8 padding[HEARTBEAT_STRIDE - sizeof(u64)];
};
// One byte per port of a queue: not 0 while the socket may have packets.
struct ready {
	u8 port[PORTS_MAX];
};
_Static_assert((PORTS_MAX & (PORTS_MAX - 1)) == 0, "raise masks with it");
_Static_assert(sizeof(struct port_entry) == 8, "rules.rs");
_Static_assert(sizeof(struct prefix4) == 8, "rules.rs");
_Static_assert(sizeof(struct prefix6) == 20, "rules.rs");
_Static_assert(sizeof(struct claim4) == 8, "rules.rs");
_Static_assert(sizeof(struct claim6) == 20, "rules.rs");
_Static_assert(sizeof(struct heartbeat) == HEARTBEAT_STRIDE, "heartbeat.rs");

#define ARRAY(name, entries, value_type)                                                           \
	struct {                                                                                   \
		__uint(type, MAP_ARRAY);                                                           \
		__uint(max_entries, entries);                                                      \
		__type(key, u32);                                                                  \
		__type(value, value_type);                                                         \
	} name SEC(".maps")
#define TABLE(name, map_type, flags, entries, key_type, value_type)                                \
	struct {                                                                                   \
		__uint(type, map_type);                                                            \
		__uint(map_flags, flags);                                                          \
		__uint(max_entries, entries);                                                      \
		__type(key, key_type);                                                             \
		__type(value, value_type);                                                         \
	} name SEC(".maps")

// (port * QUEUES_MAX + queue) -> socket, and the worker that serves it.
TABLE(xsks, MAP_XSKMAP, 0, PORTS_MAX *QUEUES_MAX, u32, u32);
ARRAY(slot_worker, PORTS_MAX *QUEUES_MAX, u32);
// ifindex -> port.
TABLE(ports, MAP_HASH, 0, INTERFACES_MAX, u32, struct port_entry);
// Destinations that are ours wherever they arrive: pods, services, load balancer addresses.
TABLE(prefixes4, MAP_LPM_TRIE, BPF_F_NO_PREALLOC, PREFIXES_MAX, struct prefix4, u32);
TABLE(prefixes6, MAP_LPM_TRIE, BPF_F_NO_PREALLOC, PREFIXES_MAX, struct prefix6, u32);
// Addresses the kernel shares with us; l4_ports tells whose a packet is.
TABLE(node_addresses4, MAP_HASH, 0, NODE_ADDRESSES_MAX, u32, u8);
TABLE(node_addresses6, MAP_HASH, 0, NODE_ADDRESSES_MAX, struct address6, u8);
// Which addresses a pod may claim on its link.
TABLE(pod_addresses4, MAP_HASH, BPF_F_NO_PREALLOC, POD_ADDRESSES_MAX, struct claim4, u8);
TABLE(pod_addresses6, MAP_HASH, BPF_F_NO_PREALLOC, POD_ADDRESSES_MAX, struct claim6, u8);
ARRAY(l4_ports, BITMAPS *L4_PORT_WORDS, u64);
// CLOCK_MONOTONIC of every worker's last tick, or of when its sleep is over at the latest; 0 never
// ticked.
TABLE(heartbeats, MAP_ARRAY, BPF_F_MMAPABLE, WORKERS_MAX, u32, struct heartbeat);
// By queue, since that is what tells workers apart: see ready.rs.
TABLE(ready, MAP_ARRAY, BPF_F_MMAPABLE, QUEUES_MAX, u32, struct ready);
// A worker that has not ticked for this many nanoseconds is stalled, and late when it has not for an
// eighth of them. The coarse clock goes in steps of up to 10 ms: by two of them nobody is late.
ARRAY(stall_after, 1, u64);
#define LATE_SHARE 8
#define LATE_LEAST 20000000ull
TABLE(counters, MAP_PERCPU_ARRAY, 0, COUNTERS, u32, u64);

static inline u16 swap16(u16 value)
{
	return __builtin_bswap16(value);
}
#define ETH_IPV4 0x0800
#define ETH_ARP 0x0806
#define ETH_IPV6 0x86dd
#define ETH_VLAN 0x8100
#define ETH_SERVICE_VLAN 0x88a8
#define TAG_VLAN 0x0fff
// Tags that are looked behind.
#define TAGS 4
enum { IP_HOP_BY_HOP = 0, IP_ICMP = 1, IP_TCP = 6, IP_UDP = 17, IP_ROUTING = 43, IP_FRAGMENT = 44,
       IP_AUTHENTICATION = 51, IP_ICMPV6 = 58, IP_DESTINATION = 60, IP_MOBILITY = 135, IP_HIP = 139,
       IP_SCTP = 132, IP_SHIM6 = 140 };

struct ethernet {
	u8 destination[6], source[6];
	u16 type;
} __attribute__((packed));
// What stands before the type of a tagged frame (IEEE 802.1Q, 9.6).
struct tag {
	u16 content, type;
};
struct ipv4 {
	u8 version_length, tos;
	u16 total_length, identification, fragment;
	u8 ttl, protocol;
	u16 checksum;
	u32 source, destination;
};
struct ipv6 {
	u32 version_class_flow;
	u16 payload_length;
	u8 next_header, hop_limit;
	struct address6 source, destination;
};
// The first 8 bytes of TCP, UDP, SCTP, ICMP and ICMPv6 answer everything that is asked.
struct l4 {
	union {
		struct {
			u16 source, destination;
		};
		struct {
			u8 type, code;
			u16 checksum;
		};
	};
	u16 identifier, sequence;
};
// RFC 9293, 3.1.
struct tcp {
	u16 source, destination;
	u32 sequence, acknowledgment;
	u8 offset, flags;
} __attribute__((packed));
#define TCP_SYN 0x02
#define TCP_ACK 0x10
// ARP for IPv4 over Ethernet (RFC 826).
struct arp {
	u16 hardware, protocol;
	u8 hardware_length, protocol_length;
	u16 operation;
	u8 sender_mac[6];
	u32 sender;
	u8 target_mac[6];
	u32 target;
} __attribute__((packed));
struct extension {
	u8 next_header, length;
	u8 rest[6];
};

// Whose a frame is. Of one that is cut too short the kernel says so.
enum owner { KERNEL, OURS, OURS_MAY_PASS, CUT };

static inline int count(u32 counter, int action)
{
	u64 *value = bpf_map_lookup_elem(&counters, &counter);
	if (value)
		*value += 1;
	return action;
}

// What is ours and has no live worker.
static inline int unserved(enum owner owner, u32 counter)
{
	if (owner != OURS_MAY_PASS)
		return count(counter, XDP_DROP);
	return count(COUNTER_PASSED_ON_STALL, XDP_PASS);
}

// How a queue's worker is.
enum pulse { STALLED, LATE, ALIVE };

static inline enum pulse pulse_of(u32 slot)
{
	u32 zero = 0, *worker = bpf_map_lookup_elem(&slot_worker, &slot);
	u64 *limit = bpf_map_lookup_elem(&stall_after, &zero);
	if (!worker || !limit)
		return STALLED;
	struct heartbeat *heartbeat = bpf_map_lookup_elem(&heartbeats, worker);
	if (!heartbeat)
		return STALLED;
	u64 last = *(volatile u64 *)&heartbeat->nanos;
	// A beat may lie ahead: the worker sleeps until then, or the coarse clock lags, by up to one
	// timer tick.
	u64 now = bpf_ktime_get_coarse_ns();
	if (!last || last + *limit < now)
		return STALLED;
	u64 late = *limit / LATE_SHARE;
	return last + (late < LATE_LEAST ? LATE_LEAST : late) < now ? LATE : ALIVE;
}

// Whether a frame is the first segment of a TCP connection (RFC 9293, 3.5: SYN without ACK), as far
// as its fixed headers say; behind extension headers of IPv6 it is not looked for.
static inline int begins_connection(struct xdp_md *ctx)
{
	void *start = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethernet *ethernet = start;
	struct tcp *tcp;
	if ((void *)(ethernet + 1) > end)
		return 0;
	if (ethernet->type == swap16(ETH_IPV4)) {
		struct ipv4 *ip = (void *)(ethernet + 1);
		if ((void *)(ip + 1) > end || ip->protocol != IP_TCP ||
		    ip->fragment & swap16(0x1fff) || (ip->version_length & 0x0f) < 5)
			return 0;
		tcp = (void *)ip + (ip->version_length & 0x0f) * 4;
	} else {
		struct ipv6 *ip = (void *)(ethernet + 1);
		if ((void *)(ip + 1) > end || ethernet->type != swap16(ETH_IPV6) ||
		    ip->next_header != IP_TCP)
			return 0;
		tcp = (void *)(ip + 1);
	}
	if ((void *)(tcp + 1) > end)
		return 0;
	return (tcp->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

// Says that the socket has packets, before it has: they are seen at the end of the NAPI poll.
// Read first: a write would take the cache line from the worker that scans it.
static inline void raise(u32 queue, u32 port)
{
	struct ready *row = bpf_map_lookup_elem(&ready, &queue);
	if (!row)
		return;
	volatile u8 *flag = &row->port[port & (PORTS_MAX - 1)];
	if (!*flag)
		*flag = 1;
}

static inline int redirect(struct xdp_md *ctx, struct port_entry *port, enum owner owner)
{
	u32 queue = ctx->rx_queue_index;
	u32 slot = port->port * QUEUES_MAX + queue;
	if (queue >= port->queues || queue >= QUEUES_MAX)
		return unserved(owner, COUNTER_NO_SOCKET);
	enum pulse pulse = pulse_of(slot);
	if (pulse == STALLED)
		return unserved(owner, COUNTER_STALLED);
	if (pulse == LATE && begins_connection(ctx))
		return count(COUNTER_LATE, XDP_DROP);
	// The helper returns the action in its flags when the slot is empty.
	if (bpf_redirect_map(&xsks, slot, XDP_DROP) != XDP_REDIRECT)
		return unserved(owner, COUNTER_NO_SOCKET);
	raise(queue, port->port);
	return count(COUNTER_REDIRECTED, XDP_REDIRECT);
}

static inline int has_bit(u32 bitmap, u16 bit_big_endian)
{
	u32 bit = swap16(bit_big_endian);
	u32 word = bitmap * L4_PORT_WORDS + bit / 64;
	u64 *bits = bpf_map_lookup_elem(&l4_ports, &word);
	return bits && (*bits >> (bit % 64) & 1);
}

// Each prefix says for itself what a stall does: a port's other prefixes may be policed.
static inline enum owner owner_of_prefix(u32 flags)
{
	return !(flags & PREFIX_TRANSLATED) && flags & PREFIX_PASS_ON_STALL ? OURS_MAY_PASS : OURS;
}

// For a packet to a node address that carries its L4 header. L4 ports there are service
// frontends, the range we translate sources to, or host-network backends, whose answers come to us
// whoever asked: the kernel alone could serve none of them.
static inline enum owner owner_by_l4(u8 protocol, struct l4 *l4)
{
	switch (protocol) {
	case IP_TCP:
		return has_bit(BITMAP_TCP, l4->destination) ? OURS : KERNEL;
	case IP_UDP:
		return has_bit(BITMAP_UDP, l4->destination) ? OURS : KERNEL;
	case IP_SCTP:
		return has_bit(BITMAP_SCTP, l4->destination) ? OURS : KERNEL;
	case IP_ICMP:
		// An error quotes a packet that may have been ours; only the pipeline can tell.
		if (l4->type == 3 || l4->type == 4 || l4->type == 5 || l4->type == 11 ||
		    l4->type == 12)
			return OURS;
		// Replies to an echo and to a timestamp query.
		return (l4->type == 0 || l4->type == 14) && has_bit(BITMAP_ICMP, l4->identifier)
			       ? OURS
			       : KERNEL;
	case IP_ICMPV6:
		// RFC 4443 section 2.1: error messages have types below 128.
		if (l4->type < 128)
			return OURS;
		return l4->type == 129 && has_bit(BITMAP_ICMP, l4->identifier) ? OURS : KERNEL;
	}
	// Packets in packets from other nodes, where services return directly.
	return has_bit(BITMAP_PROTOCOL, swap16(protocol)) ? OURS : KERNEL;
}

static inline enum owner at_uplink4(void *start, void *end)
{
	struct ipv4 *ip = start;
	if ((void *)(ip + 1) > end || (ip->version_length & 0x0f) < 5)
		return CUT;
	u32 address = ip->destination;
	if (bpf_map_lookup_elem(&node_addresses4, &address)) {
		if (ip->fragment & swap16(0x3fff))
			return OURS;
		struct l4 *l4 = start + (ip->version_length & 0x0f) * 4;
		if ((void *)(l4 + 1) > end)
			return CUT;
		return owner_by_l4(ip->protocol, l4);
	}
	struct prefix4 key = { 32, address };
	u32 *flags = bpf_map_lookup_elem(&prefixes4, &key);
	return flags ? owner_of_prefix(*flags) : KERNEL;
}

static inline enum owner owner_at_node6(u8 next_header, void *start, void *end)
{
	struct extension *options = start;
	if ((void *)(options + 1) > end)
		return KERNEL;
	if (next_header == IP_HOP_BY_HOP) {
		next_header = options->next_header;
		start += (options->length + 1) * 8;
	}
	switch (next_header) {
	// Further extension headers are the pipeline's to walk; it hands what is foreign back.
	case IP_FRAGMENT:
	case IP_HOP_BY_HOP:
	case IP_ROUTING:
	case IP_DESTINATION:
	case IP_AUTHENTICATION:
	case IP_MOBILITY:
	case IP_HIP:
	case IP_SHIM6:
		return OURS;
	}
	struct l4 *l4 = start;
	if ((void *)(l4 + 1) > end)
		return KERNEL;
	return owner_by_l4(next_header, l4);
}

static inline enum owner at_uplink6(void *start, void *end)
{
	struct ipv6 *ip = start;
	if ((void *)(ip + 1) > end)
		return CUT;
	struct prefix6 key = { 128, ip->destination };
	if (bpf_map_lookup_elem(&node_addresses6, &key.address))
		return owner_at_node6(ip->next_header, ip + 1, end);
	u32 *flags = bpf_map_lookup_elem(&prefixes6, &key);
	return flags ? owner_of_prefix(*flags) : KERNEL;
}

// ICMPv6 type of a neighbour discovery message (RFC 4861: 133 to 137), otherwise 0.
static inline u8 discovery_type(void *start, void *end)
{
	struct ipv6 *ip = start;
	struct l4 *icmp = start + sizeof(*ip);
	if ((void *)(icmp + 1) > end || ip->next_header != IP_ICMPV6)
		return 0;
	return icmp->type >= 133 && icmp->type <= 137 ? icmp->type : 0;
}

// Whether a pod's ARP speaks of its own address, or of none (RFC 5227 probes).
static inline int is_own_arp(struct port_entry *port, void *start, void *end)
{
	struct arp *arp = start;
	if ((void *)(arp + 1) > end)
		return 0;
	struct claim4 claim = { port->port, arp->sender };
	return !claim.address || bpf_map_lookup_elem(&pod_addresses4, &claim);
}

// Whether an address is the pod's, none, or of its link alone, where it deceives only itself.
static inline int is_own6(struct port_entry *port, struct address6 *address)
{
	struct claim6 claim = { port->port, *address };
	u32 *word = claim.address.word;
	if (!(word[0] | word[1] | word[2] | word[3]))
		return 1;
	if ((word[0] & __builtin_bswap32(0xffc00000)) == __builtin_bswap32(0xfe800000))
		return 1;
	return bpf_map_lookup_elem(&pod_addresses6, &claim) != (void *)0;
}

// Whether a pod's neighbour discovery is what a pod may say, about its own addresses.
static inline int is_own_discovery(struct port_entry *port, u8 type, void *start, void *end)
{
	struct ipv6 *ip = start;
	// RFC 6105: a pod is no router, and redirects nobody.
	if (type == 134 || type == 137)
		return 0;
	// A neighbour advertisement's target, which a solicitation's answer makes the kernel learn.
	struct address6 *target = start + sizeof(*ip) + sizeof(struct l4);
	if ((void *)(target + 1) > end)
		return type == 133 && (void *)(ip + 1) <= end && is_own6(port, &ip->source);
	return is_own6(port, &ip->source) && (type != 136 || is_own6(port, target));
}

// Whether an IPv4 packet is link business: multicast, broadcast, or to a link-local address. A
// subnet's own broadcast address shows only in the link address, which a stranger may write above
// what is ours.
static inline int is_of_link4(struct ethernet *ethernet, void *start, void *end)
{
	struct ipv4 *ip = start;
	if ((void *)(ip + 1) > end)
		return 0;
	u32 address = __builtin_bswap32(ip->destination);
	if (address >> 28 == 0xe || address == 0xffffffff || address >> 16 == 0xa9fe)
		return 1;
	struct prefix4 key = { 32, ip->destination };
	return ethernet->destination[0] & 1 &&
	       !bpf_map_lookup_elem(&node_addresses4, &key.address) &&
	       !bpf_map_lookup_elem(&prefixes4, &key);
}

static inline int is_of_link6(void *start, void *end)
{
	struct ipv6 *ip = start;
	if ((void *)(ip + 1) > end)
		return 0;
	u32 word = __builtin_bswap32(ip->destination.word[0]);
	return word >> 24 == 0xff || word >> 22 == 0xfe80 >> 6;
}

// An IP packet that came by an uplink.
static inline enum owner at_uplink(struct port_entry *port, struct ethernet *ethernet, u16 type,
				   void *ip, void *end)
{
	if (!(port->flags & PORT_EVERYTHING))
		return type == ETH_IPV4 ? at_uplink4(ip, end) : at_uplink6(ip, end);
	// Who listens there listens on this interface, and hears nothing by the host port.
	int is_of_link = type == ETH_IPV4 ? is_of_link4(ethernet, ip, end) : is_of_link6(ip, end);
	return is_of_link ? KERNEL : OURS;
}

static inline int is_tag(u16 type)
{
	return type == ETH_VLAN || type == ETH_SERVICE_VLAN;
}

// A tagged frame that came by an uplink. One of a VLAN is for an interface of its own, or nobody; but one
// with a priority alone is this interface's, and the kernel takes as many such tags off as there are.
// Passed, what is ours would be forwarded past services and policy. It is dropped, since the pipeline
// reads no tags.
static inline int tagged(struct port_entry *port, struct ethernet *ethernet, void *end)
{
	struct tag *tag = (void *)(ethernet + 1);
	u16 type = 0;
	for (int tags = 0; tags < TAGS; tags++) {
		if ((void *)(tag + 1) > end)
			return count(COUNTER_MALFORMED, XDP_PASS);
		if (tag->content & swap16(TAG_VLAN))
			return count(COUNTER_PASSED, XDP_PASS);
		type = swap16(tag->type);
		tag++;
		if (!is_tag(type))
			break;
	}
	if (is_tag(type))
		return count(COUNTER_TAGGED, XDP_DROP);
	if ((type != ETH_IPV4 && type != ETH_IPV6) ||
	    (type == ETH_IPV6 && discovery_type(tag, end)))
		return count(COUNTER_PASSED, XDP_PASS);
	switch (at_uplink(port, ethernet, type, tag, end)) {
	case KERNEL:
		return count(COUNTER_PASSED, XDP_PASS);
	case CUT:
		return count(COUNTER_MALFORMED, XDP_PASS);
	default:
		return count(COUNTER_TAGGED, XDP_DROP);
	}
}

static inline int answer(struct xdp_md *ctx)
{
	void *start = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethernet *ethernet = start;
	u32 ifindex = ctx->ingress_ifindex;
	struct port_entry *port = bpf_map_lookup_elem(&ports, &ifindex);
	if (!port)
		return count(COUNTER_UNKNOWN_INTERFACE, XDP_PASS);
	if ((void *)(ethernet + 1) > end)
		return count(COUNTER_MALFORMED, XDP_DROP);
	int is_uplink = port->kind == KIND_UPLINK;
	void *ip = ethernet + 1;
	u16 type = swap16(ethernet->type);
	int is_pod = port->kind == KIND_POD;
	// What a pod may not say of itself goes to the pipeline, which drops it by name.
	if (type == ETH_ARP) {
		if (is_pod && !is_own_arp(port, ip, end))
			return redirect(ctx, port, OURS);
		return count(COUNTER_PASSED, XDP_PASS);
	}
	if (is_uplink && is_tag(type))
		return tagged(port, ethernet, end);
	u8 discovery = type == ETH_IPV6 ? discovery_type(ip, end) : 0;
	if (discovery) {
		if (is_pod && !is_own_discovery(port, discovery, ip, end))
			return redirect(ctx, port, OURS);
		return count(COUNTER_PASSED, XDP_PASS);
	}
	if (type != ETH_IPV4 && type != ETH_IPV6)
		return is_uplink ? count(COUNTER_PASSED, XDP_PASS)
				 : count(COUNTER_NOT_IP, XDP_DROP);
	if (!is_uplink)
		return redirect(ctx, port, OURS);
	enum owner owner = at_uplink(port, ethernet, type, ip, end);
	if (owner == CUT)
		return count(COUNTER_MALFORMED, XDP_PASS);
	return owner == KERNEL ? count(COUNTER_PASSED, XDP_PASS) : redirect(ctx, port, owner);
}

SEC("xdp") int xskiff(struct xdp_md *ctx)
{
	return answer(ctx);
}

// The same for frames of several buffers (MTU above one page, or segments of a local stack).
SEC("xdp.frags") int xskiff_frags(struct xdp_md *ctx)
{
	return answer(ctx);
}

char _license[] SEC("license") = "Apache-2.0";
