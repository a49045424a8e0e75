// SPDX-License-Identifier: Apache-2.0
//
// The second way out of a port: each run takes the next packet of a worker's batch, copies it into
// the live frame (BPF_PROG_TEST_RUN) and redirects that to the port's interface.

#include "program.bpf.h"

static long (*bpf_redirect_map)(void *map, u64 key, u64 flags) = (void *)51;
static long (*bpf_xdp_adjust_tail)(struct xdp_md *ctx, int delta) = (void *)65;
static long (*bpf_xdp_store_bytes)(struct xdp_md *ctx, u32 offset, void *bytes, u32 length) =
	(void *)190;

// Shared with live_transmit, which asserts the same sizes.
struct packet {
	u32 length;
	u32 port;
	u32 is_sent; // on its way to the interface; what becomes of it there is not known yet
	u32 padding;
	u8 bytes[LIVE_PACKET_BYTES];
};
struct progress {
	u32 taken; // packets of the batch, since the call began
	u32 padding[15]; // a cache line for each worker
};
_Static_assert(sizeof(struct packet) == 2048, "live_transmit");
_Static_assert(sizeof(struct progress) == 64, "live_transmit");

// Entries for the workers that there are: set when it is loaded.
struct {
	__uint(type, MAP_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, LIVE_BATCH);
	__type(key, u32);
	__type(value, struct packet);
} packets SEC(".maps");
struct {
	__uint(type, MAP_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, WORKERS_MAX);
	__type(key, u32);
	__type(value, struct progress);
} progress SEC(".maps");
struct device {
	u32 ifindex;
	int program;
};
struct {
	__uint(type, MAP_DEVMAP);
	__uint(max_entries, PORTS_MAX);
	__type(key, u32);
	__type(value, struct device);
} devices SEC(".maps");

// Who calls is told by the length that the frame begins with: nothing else of a call reaches the
// program and is the same in each of its frames, also in those that are used again.
SEC("xdp") int xskiff_live(struct xdp_md *ctx)
{
	u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u32 length = end - data;
	u32 worker = length % WORKERS_MAX;
	struct progress *own = bpf_map_lookup_elem(&progress, &worker);
	if (!own)
		return XDP_DROP;
	u32 key = worker * LIVE_BATCH + own->taken % LIVE_BATCH;
	struct packet *packet = bpf_map_lookup_elem(&packets, &key);
	if (!packet)
		return XDP_DROP;
	own->taken += 1;
	u32 wanted = packet->length;
	if (wanted == 0 || wanted > LIVE_PACKET_BYTES)
		return XDP_DROP;
	if (wanted != length && bpf_xdp_adjust_tail(ctx, (int)wanted - (int)length))
		return XDP_DROP;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	// The shortest packets are the most, and a call for each would cost as much as the rest.
	if (wanted == 60 && data + 60 <= end) {
		u64 *to = (void *)data, *from = (void *)packet->bytes;
#pragma unroll
		for (int word = 0; word < 7; word++)
			to[word] = from[word];
		*(u32 *)(data + 56) = *(u32 *)(packet->bytes + 56);
	} else if (bpf_xdp_store_bytes(ctx, 0, packet->bytes, wanted)) {
		return XDP_DROP;
	}
	long answer = bpf_redirect_map(&devices, packet->port, XDP_DROP);
	packet->is_sent = answer == XDP_REDIRECT;
	return answer;
}

char _license[] SEC("license") = "Apache-2.0";
