// SPDX-License-Identifier: Apache-2.0
//
// Packets for measurements: `generate` makes them out of live frames (BPF_PROG_TEST_RUN), `count`
// counts at the far end those that arrived as they must. 60-byte UDP over IPv4, one layout, so
// that both are a few straight lines.

#include "program.bpf.h"

static u64 (*bpf_ktime_get_ns)(void) = (void *)5;
static long (*bpf_redirect)(u32 ifindex, u64 flags) = (void *)23;
static long (*bpf_loop)(u32 count, void *callback, void *context, u64 flags) = (void *)181;

// Ethernet, IPv4 and UDP headers as 16-bit words in network order.
struct frame {
	u16 ethernet[7];
	u16 ip[10];
	u16 udp[4];
	u16 payload[9];
} __attribute__((packed));
_Static_assert(sizeof(struct frame) == 60, "live_frames.rs");
enum { IP_TTL = 4, IP_CHECKSUM = 5, IP_SOURCE = 6, IP_DESTINATION = 8 };
enum { UDP_SOURCE = 0, UDP_DESTINATION = 1, UDP_CHECKSUM = 3 };
enum { FIRST_L4_PORT = 1024, L4_PORTS = 65536 - FIRST_L4_PORT };

// Bursts begin at a steady pace; one that falls behind by more does not make up for it.
enum { BURST = 64, BEHIND_MAX_NS = 200000 };
// Looks at the clock in one wait at most, tens of milliseconds.
enum { LOOKS_MAX = 1 << 20 };

// Shared with live_frames.rs, which asserts the same size.
struct traffic {
	u64 flows; // 0: every packet begins a flow
	u64 burst_interval_ns;
	u32 first_source; // host order
	u32 source_bits;
	u32 first_destination; // host order
	u32 destinations;
	u32 ip_sum; // of the frame without addresses, source port and checksum, not folded
	u32 udp_sum;
	struct frame frame;
	u32 padding;
};
struct expected {
	u32 destination, mask; // network order
	u16 l4_port; // network order
	u8 ttl;
	u8 padding;
};
struct counted {
	u64 right, wrong;
};
struct progress {
	u64 packets;
	u64 due_ns; // when the next burst begins
	u64 waited_ns;
};
_Static_assert(sizeof(struct progress) == 24, "live_frames.rs");
_Static_assert(sizeof(struct traffic) == 104, "live_frames.rs");
_Static_assert(sizeof(struct expected) == 12, "live_frames.rs");

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct traffic);
} traffic SEC(".maps");
struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct progress);
} progress SEC(".maps");
struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct expected);
} expected SEC(".maps");
struct {
	__uint(type, MAP_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct counted);
} counted SEC(".maps");

static inline u16 folded(u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static inline u32 two_words(const u16 *words)
{
	return (u32)words[0] + words[1];
}

static long is_due(u32 look, void *context)
{
	return bpf_ktime_get_ns() >= *(u64 *)context;
}

// Waiting is done here, since a call into the kernel for every burst makes a pool of pages each time,
// and the kernel takes as long to be rid of it.
static inline void wait_for_turn(struct progress *progress, u64 interval_ns)
{
	u64 due_ns = progress->due_ns, now_ns = bpf_ktime_get_ns();
	if (now_ns < due_ns) {
		bpf_loop(LOOKS_MAX, is_due, &due_ns, 0);
		progress->waited_ns += bpf_ktime_get_ns() - now_ns;
	} else if (now_ns - due_ns > BEHIND_MAX_NS) {
		due_ns = now_ns;
	}
	progress->due_ns = due_ns + interval_ns;
}

// Steps of the golden ratio visit all of `count` evenly and out of order (Weyl).
static inline u64 spread(u64 number, u64 count)
{
	return ((number * 0x9e3779b97f4a7c15ULL >> 32) * count) >> 32;
}

// One caller at a time: the flow's number is not taken atomically. It is attached to a spare
// interface as well, so that it stays in the kernel's dispatcher of XDP programs between calls:
// going there and away takes 20 ms.
SEC("xdp") int generate(struct xdp_md *ctx)
{
	u32 zero = 0;
	struct frame *frame = (void *)(long)ctx->data;
	struct traffic *made = bpf_map_lookup_elem(&traffic, &zero);
	struct progress *sent = bpf_map_lookup_elem(&progress, &zero);
	if (!made || !sent)
		return XDP_ABORTED;
	u64 number = sent->packets++;
	if (number % BURST == 0)
		wait_for_turn(sent, made->burst_interval_ns);
	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	if (made->flows)
		number = spread(number, made->flows);
	u32 low = number & ((1U << made->source_bits) - 1);
	u32 address = __builtin_bswap32(made->first_source + low);
	u16 l4_port = FIRST_L4_PORT + (u32)(number >> made->source_bits) % L4_PORTS;
	l4_port = __builtin_bswap16(l4_port);
	// Memory of frames is used again as the last receiver left it: everything is written.
	*frame = made->frame;
	u32 destination = made->first_destination + spread(number, made->destinations);
	destination = __builtin_bswap32(destination);
	u32 change = (address & 0xffff) + (address >> 16) + (destination & 0xffff) + (destination >> 16);
	frame->ip[IP_SOURCE] = address;
	frame->ip[IP_SOURCE + 1] = address >> 16;
	frame->ip[IP_DESTINATION] = destination;
	frame->ip[IP_DESTINATION + 1] = destination >> 16;
	frame->ip[IP_CHECKSUM] = ~folded(made->ip_sum + change);
	frame->udp[UDP_SOURCE] = l4_port;
	u16 checksum = ~folded(folded(made->udp_sum + change) + l4_port);
	frame->udp[UDP_CHECKSUM] = checksum ? checksum : 0xffff;
	return bpf_redirect(ctx->ingress_ifindex, 0);
}

static inline int is_right(struct frame *frame, struct expected *wanted)
{
	u32 sum = 0;
	for (int word = 0; word < 10; word++)
		sum += frame->ip[word];
	u32 destination = frame->ip[IP_DESTINATION] | (u32)frame->ip[IP_DESTINATION + 1] << 16;
	if (folded(sum) != 0xffff || (destination & wanted->mask) != wanted->destination ||
	    frame->udp[UDP_DESTINATION] != wanted->l4_port ||
	    (u8)frame->ip[IP_TTL] != wanted->ttl)
		return 0;
	// Pseudo-header: addresses, protocol 17, length 26.
	sum = two_words(&frame->ip[IP_SOURCE]) + two_words(&frame->ip[IP_DESTINATION]) +
	      __builtin_bswap16(17 + 26);
	for (int word = 0; word < 4; word++)
		sum += frame->udp[word];
	for (int word = 0; word < 9; word++)
		sum += frame->payload[word];
	return folded(sum) == 0xffff && frame->udp[UDP_CHECKSUM];
}

// Everything else that arrives (ARP, IPv6) is the kernel's.
SEC("xdp") int count(struct xdp_md *ctx)
{
	u32 zero = 0;
	struct frame *frame = (void *)(long)ctx->data;
	struct expected *wanted = bpf_map_lookup_elem(&expected, &zero);
	struct counted *seen = bpf_map_lookup_elem(&counted, &zero);
	if ((void *)(frame + 1) > (void *)(long)ctx->data_end || !wanted || !seen)
		return XDP_PASS;
	if (frame->ethernet[6] != __builtin_bswap16(0x0800) || frame->ip[0] != __builtin_bswap16(0x4500))
		return XDP_PASS;
	if (is_right(frame, wanted))
		seen->right += 1;
	else
		seen->wrong += 1;
	return XDP_DROP;
}

char _license[] SEC("license") = "Apache-2.0";
